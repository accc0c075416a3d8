import pytest
import torch
from toy import seeded

from nnunetv2_genseg.synthesis.intensity_variation import LEAST, PATCHES, IntensityVariation

CPU = torch.device("cpu")


def scene_of(*sizes):
    """(1, N) classes with so many voxels each."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[None]


def observed(means):
    """A variation that has seen (n, classes, C) mean intensities, a patch at a time."""
    variation = IntensityVariation(*means.shape[1:], CPU)
    for one in means:
        variation.observe(one[None], scene_of(*[LEAST] * len(one)))
    return variation


def test_shifts_have_the_covariance_of_the_real_patches():
    """Class 1 is always as bright as class 0, class 2 is always the same, and class 3 varies in the second channel alone."""
    noise = torch.randn(PATCHES, 2, generator=seeded())
    means = torch.zeros(PATCHES, 4, 2) + torch.arange(4.0)[:, None]
    means[:, :2] += noise[:, :1, None]
    means[:, 3, 1] += 2 * noise[:, 1]
    drawn = observed(means).shift(50_000, seeded(1)).flatten(1)
    flat = (means - means.mean(dim=0)).flatten(1)
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), flat.T @ flat / PATCHES, rtol=0.05, atol=0.05)
    torch.testing.assert_close(drawn.mean(dim=0), torch.zeros(8), rtol=0, atol=0.05)
    torch.testing.assert_close(drawn[:, 0], drawn[:, 2])
    assert not drawn[:, 4:6].any()


def test_only_the_latest_patches_count():
    old, new = (torch.full((PATCHES, 1, 1), value) for value in (100.0, 1.0))
    assert not observed(torch.cat([old, new])).shift(3, seeded()).any()


def test_before_two_patches_nothing_is_shifted():
    variation = IntensityVariation(2, 1, CPU)
    assert not variation.shift(3, seeded()).any()
    variation.observe(torch.randn(1, 2, 1), scene_of(LEAST, LEAST))
    assert not variation.shift(3, seeded()).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_classes_of_few_voxels_and_intensities_that_are_not_finite_do_not_count(bad):
    means = torch.tensor([[0.0, 0.0], [2.0, 2.0], [9.0, bad]])[..., None]
    variation = observed(means[:2])
    variation.observe(means[2:], scene_of(LEAST - 1, LEAST))
    drawn = variation.shift(50_000, seeded())
    torch.testing.assert_close(drawn.square().mean(dim=0), torch.ones(2, 1), rtol=0.05, atol=0)


def test_a_batch_is_as_its_patches_one_by_one():
    means = torch.randn(PATCHES + 5, 2, 1, generator=seeded())
    together = IntensityVariation(2, 1, CPU)
    together.observe(means, scene_of(LEAST, LEAST).expand(len(means), -1))
    one_by_one = observed(means)
    assert together.shift(2, seeded()).shape == (2, 2, 1)
    found, expected = (own.means.flatten().sort().values for own in (together, one_by_one))
    assert torch.equal(found, expected)


def test_it_goes_on_as_it_was():
    means = torch.randn(2, 70, 2, 1, generator=seeded())
    first = observed(means[0])
    second = IntensityVariation(2, 1, CPU)
    second.load_state_dict(first.state_dict())
    for own in (first, second):
        own.observe(means[1][:3], scene_of(LEAST, LEAST).expand(3, -1))
    assert torch.equal(first.shift(4, seeded()), second.shift(4, seeded()))
