import pytest
import torch

from nnunetv2_genseg.appearance import FILTER_LAYERS, random_filter, tone_curve


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


def test_no_width_changes_nothing_and_a_constant_patch_stays_finite():
    image = pictures(2, 1)
    torch.testing.assert_close(tone_curve(image, 0.0, seeded()), image)
    flat = torch.full((1, 1, 8, 8), 3.0)
    torch.testing.assert_close(tone_curve(flat, 1.0, seeded()), flat)


def test_the_width_has_a_gradient():
    width = torch.tensor(0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(tone_curve(pictures(2, 1), width, seeded()).pow(3).sum(), width)
    assert torch.isfinite(slope)
    assert slope != 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_filter_keeps_mean_and_spread_and_differs_from_patch_to_patch(dims, channels):
    image = pictures(dims, channels)[:1].expand(4, channels, *(12,) * dims)
    filtered = random_filter(image, 1.0, seeded())
    assert filtered.shape == image.shape
    torch.testing.assert_close(filtered.flatten(2).mean(dim=2), image.flatten(2).mean(dim=2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(filtered.flatten(2).std(dim=2), image.flatten(2).std(dim=2), rtol=1e-4, atol=1e-4)
    assert len(filtered.flatten(1).unique(dim=0)) == 4
    assert torch.equal(random_filter(image, 1.0, seeded()), filtered)


def test_filtered_structures_stay_where_they_are_and_some_are_darker_than_what_they_were_brighter_than():
    image = torch.zeros(40, 1, 32, 32)
    image[..., 16:] = 1.0
    filtered = random_filter(image, 1.0, seeded())[..., FILTER_LAYERS:-FILTER_LAYERS, :]
    left, right = filtered[..., FILTER_LAYERS : 16 - FILTER_LAYERS], filtered[..., 16 + FILTER_LAYERS : -FILTER_LAYERS]
    for half in (left, right):
        assert half.flatten(1).std(dim=1).max() < 1e-4
    contrast = (right.mean(dim=(1, 2, 3)) - left.mean(dim=(1, 2, 3))).sign()
    assert 0 < (contrast < 0).sum() < len(image) / 2, "the share of the filtered copy is half in the mean"


def test_no_share_filters_nothing_and_a_constant_patch_stays_finite():
    image = pictures(2, 3)
    torch.testing.assert_close(random_filter(image, 0.0, seeded()), image)
    assert not torch.allclose(random_filter(image, 0.1, seeded()), image)
    flat = torch.full((1, 1, 8, 8), 3.0)
    assert torch.isfinite(random_filter(flat, 1.0, seeded())).all()


def test_the_share_and_the_image_have_gradients():
    share, image = torch.tensor(0.5, requires_grad=True), pictures(2, 1).requires_grad_()
    slopes = torch.autograd.grad(random_filter(image, share, seeded()).pow(3).sum(), [share, image])
    assert all(torch.isfinite(slope).all() and slope.any() for slope in slopes)
