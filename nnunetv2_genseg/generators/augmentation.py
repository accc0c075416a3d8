"""Differentiable augmentation of what a discriminator sees (DiffAugment, Zhao et al., NeurIPS 2020, arXiv 2006.10738).

A discriminator memorises few real images. It is therefore shown augmented images only, real and drawn alike, and the
generator's gradient passes through the augmentation. So the generator does not learn to draw augmented images. Unlike
in the paper, all patches of a batch get the same translation, which makes it a single operation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TRANSLATION = 0.125
"""Largest translation along every axis, relative to the extent; voxels from outside are 0. The paper's value."""
BRIGHTNESS = 0.5
"""Largest shift of a patch's intensities, in standard deviations of the images. The paper's, whose images lie in [-1, 1]."""
CONTRAST = 0.5
"""Largest relative change of a patch's contrast about its mean. The paper's value."""


def augment(condition: Tensor, image: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Changes brightness and contrast of every patch, then moves image and condition alike.

    Args:
        condition: (B, channels, *spatial).
        image: (B, C, *spatial).
        rng: on the CPU, so that the numbers are the same on all devices and the translation is known to the host.

    Returns:
        Condition and image, differentiable in both.
    """
    shift, factor = torch.rand(2, len(image), *(1,) * (image.ndim - 1), generator=rng, device=rng.device).mul(2).sub(1)
    places = torch.rand(image.ndim - 2, generator=rng, device=rng.device).tolist()
    brightness = (BRIGHTNESS * shift).to(image.device, non_blocking=True)
    contrast = (1 + CONTRAST * factor).to(image.device, non_blocking=True)
    mean = image.flatten(1).mean(dim=1).view_as(brightness)
    changed = (image - mean) * contrast + mean + brightness

    margins: list[int] = []
    for extent, place in zip(reversed(image.shape[2:]), reversed(places), strict=True):
        largest = round(TRANSLATION * extent)
        step = int(place * (2 * largest + 1)) - largest
        margins += [step, -step]
    return functional.pad(condition, margins), functional.pad(changed, margins)
