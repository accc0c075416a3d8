import pytest
import torch

from nnunetv2_genseg.synthesis.intensity import tone_curve


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(dims, channels):
    return 2 + 3 * torch.randn(4, channels, *(12,) * dims, generator=seeded(5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_order_mean_and_spread_of_the_intensities_are_kept(dims, channels):
    image = pictures(dims, channels)
    bent = tone_curve(image, 0.7, seeded())
    assert bent.shape == image.shape
    before, after = image.flatten(2), bent.flatten(2)
    order = before.argsort(dim=2)
    assert (after.gather(2, order).diff(dim=2) > -1e-5).all()
    torch.testing.assert_close(after.mean(dim=2), before.mean(dim=2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.std(dim=2), before.std(dim=2), rtol=1e-4, atol=1e-4)


def test_every_patch_and_channel_has_its_own_curve_and_a_seed_repeats_it():
    image = pictures(2, 1).expand(4, 3, 12, 12)[:1].expand(4, 3, 12, 12)
    bent = tone_curve(image, 0.7, seeded()).flatten(0, 1)
    assert len(bent.flatten(1).unique(dim=0)) == 12
    assert torch.equal(tone_curve(image, 0.7, seeded()).flatten(0, 1), bent)


def test_the_curve_is_piecewise_linear_between_quartiles():
    image = torch.linspace(-4, 4, 4001).view(1, 1, -1, 1)
    slopes = tone_curve(image, 1.0, seeded())[0, 0, :, 0].diff() / image[0, 0, :, 0].diff()
    pieces = [slopes[start + 5 : start + 995] for start in (0, 1000, 2000, 3000)]
    for piece in pieces:
        torch.testing.assert_close(piece, piece[:1].expand_as(piece), rtol=1e-2, atol=1e-2)
    drawn = torch.randn(1, 1, 4, generator=seeded()).exp().flatten()
    found = torch.stack([piece.median() for piece in pieces])
    torch.testing.assert_close(found / found[0], drawn / drawn[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("spatial", [(128, 128, 128), (512, 512)])
@pytest.mark.parametrize("axis", [0, -1])
def test_the_knots_are_the_quartiles_of_large_patches_too(spatial, axis):
    """A ramp along one axis; a sample by a fixed stride would see two of 128 positions."""
    n = spatial[axis]
    image = torch.linspace(-2, 2, n).view(n, *(1,) * (len(spatial) - 1)).movedim(0, axis).expand(1, 1, *spatial)
    curve = tone_curve(image, 1.0, seeded())[0, 0].movedim(axis, 0).flatten(1)[:, 0]
    slopes = curve.diff() / (4 / (n - 1))
    pieces = [slopes[i * n // 4 + 4 : (i + 1) * n // 4 - 5] for i in range(4)]
    for piece in pieces:
        torch.testing.assert_close(piece, piece[:1].expand_as(piece), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dims", [2, 3])
def test_no_width_changes_nothing_and_a_constant_channel_stays_to_the_bit(dims):
    image = pictures(dims, 2)
    torch.testing.assert_close(tone_curve(image, 0.0, seeded()), image)
    image[:, 1] = 0.1
    image[0, 1] = -1000.7
    width = torch.tensor(1.0, requires_grad=True)
    bent = tone_curve(image, width, seeded())
    assert torch.equal(bent[:, 1], image[:, 1])
    assert not torch.equal(bent[:, 0], image[:, 0])
    assert torch.isfinite(torch.autograd.grad(bent.sum(), width)[0])


def test_the_width_has_a_gradient():
    width = torch.tensor(0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(tone_curve(pictures(2, 1), width, seeded()).pow(3).sum(), width)
    assert torch.isfinite(slope)
    assert slope != 0
