"""Quality measures on samples whose figures are known."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch import nn

from nnunetv2_genseg.quality.feature_figures import spread
from nnunetv2_genseg.quality.features import encoder_features
from nnunetv2_genseg.quality.kernel_distance import squared_discrepancy
from pair_measures import MEASURES, Samples, dice, high_frequency_ratio, standardised

SHAPES = pytest.mark.parametrize("spatial", [(16, 12), (8, 6, 10)])


class Threshold(nn.Module):
    """Sees class 1 where the first channel is above 1, class 2 where it is above 3; its features are those of two stages."""

    def forward(self, images):
        first = images[:, 0]
        return torch.stack([first * 0, (first > 1).float(), 2 * (first > 3).float()], dim=1)

    def encoder(self, images):
        return [images, images[..., ::2] ** 2]


def samples_of(real, synthetic, synthetic_labels=None, reference=None):
    return Samples(
        real=real,
        synthetic=synthetic,
        synthetic_labels=torch.zeros(real[:, 0].shape, dtype=torch.long) if synthetic_labels is None else synthetic_labels,
        reference=real if reference is None else reference,
        segmenter=Threshold(),
        foreground=2,
        batch_size=3,
    )


@SHAPES
def test_fidelity_is_the_dice_of_every_class_over_all_patches(spatial):
    labels = torch.zeros(4, *spatial, dtype=torch.long)
    labels[0, :2] = 1
    labels[1, :, :1] = 2
    image = torch.zeros(4, 1, *spatial)
    image[0, 0, :1] = 2.0  # half of class 1: Dice 2 · n / (2n + n)
    image[1, 0, :, :1] = 4.0  # all of class 2
    found = MEASURES["fidelity"](samples_of(image, image, labels))
    assert found == pytest.approx((2 / 3 + 1) / 2)
    other = MEASURES["fidelity"](samples_of(image, torch.zeros_like(image), labels))
    assert other == 0, "the synthetic images are judged"
    assert MEASURES["fidelity"](samples_of(image, image, labels.roll(1, dims=0))) < 0.1


def test_a_class_that_is_nowhere_does_not_count():
    labels = torch.tensor([[0, 1, 1, 0]])
    assert dice(torch.tensor([[0, 1, 0, 0]]), labels, 2) == pytest.approx(2 / 3)
    assert dice(torch.tensor([[0, 1, 0, 2]]), labels, 2) == pytest.approx(1 / 3), "found where it is not"
    assert math.isnan(dice(labels * 0, labels * 0, 2))


@SHAPES
def test_features_are_the_strongest_responses_of_all_stages_whatever_the_batches(spatial, rng):
    images = torch.randn(5, 2, *spatial, generator=rng)
    features = encoder_features(Threshold(), images, 2)
    assert features.shape == (5, 4)
    assert features.dtype == torch.float64
    assert torch.equal(features, encoder_features(Threshold(), images, 5))
    assert torch.equal(features[:, :2], images.flatten(2).amax(dim=2).double())
    standard = standardised(features, features)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(standard.std(dim=0, correction=0), torch.ones(4).double(), atol=1e-4, rtol=0)


def test_the_kernel_distance_is_that_of_the_definition_and_of_other_libraries(rng):
    one, other = torch.randn(30, 6, generator=rng).double(), 0.5 + torch.randn(20, 6, generator=rng).double()

    def kernel(x, y):
        return float((x @ y / 6 + 1) ** 3)

    within = [
        sum(kernel(x, y) for i, x in enumerate(z) for j, y in enumerate(z) if i != j) / (len(z) * (len(z) - 1))
        for z in (one, other)
    ]
    between = sum(kernel(x, y) for x in one for y in other) / (len(one) * len(other))
    assert squared_discrepancy(one, other) == pytest.approx(sum(within) - 2 * between, rel=1e-9)
    assert polynomial_kernel(one, other, degree=3).mean() == pytest.approx(between, rel=1e-9)


def test_the_kernel_distance_equals_torchmetrics(rng):
    kid = pytest.importorskip("torchmetrics.image.kid")
    one, other = (torch.randn(25, 6, generator=rng).double() + shift for shift in (0.0, 0.5))  # it wants equal numbers
    assert squared_discrepancy(one, other) == pytest.approx(float(kid.poly_mmd(one, other)), rel=1e-9)


def test_the_kernel_distance_is_unbiased_and_grows_with_a_shift(rng):
    pairs = [torch.randn(2, 120, 8, generator=rng).double() for _ in range(50)]
    alike = torch.tensor([squared_discrepancy(one, other) for one, other in pairs])
    assert alike.mean().abs() < 0.02, "a biased estimate would be 0.1: the kernel of a sample with itself"
    assert alike.min() < 0 < alike.max()
    shifted = [squared_discrepancy(pairs[0][0], pairs[0][1] + shift) for shift in (0.0, 0.5, 1.0)]
    assert shifted == sorted(shifted)


@SHAPES
def test_the_kernel_distance_compares_synthetic_images_with_the_reference(spatial, rng):
    real, other = torch.randn(2, 12, 2, *spatial, generator=rng)
    near = MEASURES["kernel_distance"](samples_of(real, other))
    far = MEASURES["kernel_distance"](samples_of(real, other + 2))
    assert 5 * abs(near) < far
    assert MEASURES["kernel_distance"](samples_of(other + 9, other, reference=real)) == pytest.approx(near), "not with `real`"


@SHAPES
def test_diversity_is_relative_to_that_of_the_real_patches(spatial, rng):
    real = torch.randn(9, 2, *spatial, generator=rng)
    measure = MEASURES["diversity"]
    assert measure(samples_of(real, real)) == pytest.approx(1)
    assert measure(samples_of(real, real[:1].expand_as(real))) == 0
    two = torch.cat([real[:1]] * 5 + [real[1:2]] * 4)
    assert 0 < measure(samples_of(real, two)) < measure(samples_of(real, real))
    assert measure(samples_of(real, 2 * real)) > 1.5


def test_the_spread_is_the_mean_distance_of_two_different_rows():
    assert spread(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) == pytest.approx(10 / 3)


@SHAPES
def test_sharpness_is_1_for_the_same_images_and_less_for_blurred_ones(spatial, rng):
    real = torch.randn(6, 2, *spatial, generator=rng)
    pool = {2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}[len(spatial)]
    measure = MEASURES["sharpness"]
    assert measure(samples_of(real, real)) == pytest.approx(1)
    assert measure(samples_of(real, pool(real, 3, stride=1, padding=1))) < 0.5
    assert measure(samples_of(real, 2 * real)) == pytest.approx(4, rel=1e-4), "energy"
    constant = real.clone()
    constant[:, 1] = 0
    assert measure(samples_of(constant, constant)) == pytest.approx(1), "a constant channel does not count"


LARGE = [(32, 40), (16, 20, 24)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spatial", LARGE)
def test_equal_images_have_ratio_one_and_a_factor_counts_squared(spatial):
    image = noise(4, 3, *spatial)
    torch.testing.assert_close(high_frequency_ratio(image, image), torch.ones(3))
    factor = torch.tensor([1.0, 2.0, 0.5]).view(3, *(1,) * len(spatial))
    torch.testing.assert_close(high_frequency_ratio(image, 7 + factor * image), torch.tensor([1.0, 4.0, 0.25]))


@pytest.mark.parametrize("spatial", LARGE)
def test_blur_lowers_it_and_noise_raises_it(spatial):
    image = noise(4, 1, *spatial)
    pool = torch.nn.functional.avg_pool2d if len(spatial) == 2 else torch.nn.functional.avg_pool3d
    assert high_frequency_ratio(image, pool(image, 3, 1, 1)) < 0.2
    assert 1.8 < high_frequency_ratio(image, image + noise(4, 1, *spatial, seed=1)) < 2.2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_waves_count_above_half_of_nyquist_alone(axis):
    position = torch.arange(64.0).view(-1, *(1,) * (2 - axis)).expand(64, 64, 64)[None, None]

    def wave(frequency):
        return (2 * math.pi * frequency * position).cos()

    white = noise(1, 1, 64, 64, 64)
    slow, fast = (high_frequency_ratio(white, wave(frequency)) for frequency in (0.2, 0.3))
    assert slow < 1e-4
    assert fast > 0.4


def test_a_ramp_from_border_to_border_is_no_texture():
    ramp = torch.linspace(-5, 5, 64).expand(1, 1, 64, 64)
    assert high_frequency_ratio(noise(1, 1, 64, 64), ramp) < 1e-3


def test_patches_are_averaged_and_a_constant_channel_has_no_ratio():
    image = noise(2, 2, 32, 32)
    image[:, 1] = 0
    half = image.clone()
    half[0] = 0
    ratio = high_frequency_ratio(image, half)
    assert 0.3 < ratio[0] < 0.7
    assert ratio[1].isnan()
