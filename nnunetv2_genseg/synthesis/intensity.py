"""New contrasts that no label tells of: a random monotone curve over the intensities of a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.statistics import sample_voxels

SEGMENTS = 4
"""Pieces of the curve, between equidistant quantiles of a channel's intensities."""


def tone_curve(image: Tensor, width: Tensor | float, rng: torch.Generator) -> Tensor:
    """Bends the intensities of every patch and channel by a piecewise linear curve that keeps their order.

    The slope of every piece is log-normal; mean and standard deviation of a channel stay as they are, as after nnU-Net's
    own gamma and contrast augmentations. A constant channel stays as it is.

    Args:
        image: (B, C, *spatial), any range.
        width: standard deviation of the logarithm of a slope, at least 0; the result is differentiable in it.
        rng: on the device of `image`.

    Returns:
        (B, C, *spatial).
    """
    values = image.flatten(2)
    levels = torch.linspace(0, 1, SEGMENTS + 1, device=image.device)[1:-1]
    knots = torch.quantile(sample_voxels(values.detach()).float(), levels, dim=2).movedim(0, 2)
    slopes = (width * torch.randn(*values.shape[:2], SEGMENTS, generator=rng, device=rng.device)).exp()
    bent = slopes[..., :1] * torch.minimum(values, knots[..., :1])
    for piece in range(1, SEGMENTS):
        above = (values - knots[..., piece - 1 : piece]).clamp(min=0)
        if piece < SEGMENTS - 1:
            above = torch.minimum(above, (knots[..., piece] - knots[..., piece - 1])[..., None])
        bent = bent + slopes[..., piece : piece + 1] * above
    spread, mean = values.std(dim=2, keepdim=True), values.mean(dim=2, keepdim=True)
    bent_spread = bent.std(dim=2, keepdim=True).clamp(min=torch.finfo(values.dtype).eps)
    restored = (bent - bent.mean(dim=2, keepdim=True)) * (spread / bent_spread) + mean
    constant = values.amin(dim=2, keepdim=True) == values.amax(dim=2, keepdim=True)
    return torch.where(constant, values, restored).view_as(image)
