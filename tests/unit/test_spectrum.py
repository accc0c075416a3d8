import math

import pytest
import torch
from torch.nn import functional

from nnunetv2_genseg.quality.spectrum import high_frequency_ratio

SHAPES = [(32, 40), (16, 20, 24)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spatial", SHAPES)
def test_equal_images_have_ratio_one_and_a_factor_counts_squared(spatial):
    image = noise(4, 3, *spatial)
    torch.testing.assert_close(high_frequency_ratio(image, image), torch.ones(3))
    factor = torch.tensor([1.0, 2.0, 0.5]).view(3, *(1,) * len(spatial))
    torch.testing.assert_close(high_frequency_ratio(image, 7 + factor * image), torch.tensor([1.0, 4.0, 0.25]))


@pytest.mark.parametrize("spatial", SHAPES)
def test_blur_lowers_it_and_noise_raises_it(spatial):
    image = noise(4, 1, *spatial)
    pool = functional.avg_pool2d if len(spatial) == 2 else functional.avg_pool3d
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
