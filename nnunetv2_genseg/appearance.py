"""New contrasts that no label tells of: a random monotone curve over the intensities of a patch, or a random filter."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

SEGMENTS = 4
"""Pieces of the curve, between equidistant quantiles of a channel's intensities."""
QUANTILE_VOXELS = 32768
"""The quantiles of a patch are taken from at most about this many of its voxels."""
FILTER_LAYERS = 4
FILTER_CHANNELS = 2
"""Of the hidden layers of a random filter; both numbers are the paper's."""


def tone_curve(image: Tensor, width: Tensor | float, rng: torch.Generator) -> Tensor:
    """Bends the intensities of every patch and channel by a piecewise linear curve that keeps their order.

    The slope of every piece is log-normal; mean and standard deviation of a channel stay as they are, as after nnU-Net's
    own gamma and contrast augmentations.

    Args:
        image: (B, C, *spatial), any range.
        width: standard deviation of the logarithm of a slope, at least 0; the result is differentiable in it.
        rng: on the device of `image`.

    Returns:
        (B, C, *spatial).
    """
    values = image.flatten(2)
    step = -(-values.shape[2] // QUANTILE_VOXELS)
    levels = torch.linspace(0, 1, SEGMENTS + 1, device=image.device)[1:-1]
    knots = torch.quantile(values.detach()[..., ::step].float(), levels, dim=2).movedim(0, 2)
    slopes = (width * torch.randn(*values.shape[:2], SEGMENTS, generator=rng, device=rng.device)).exp()
    bent = slopes[..., :1] * torch.minimum(values, knots[..., :1])
    for piece in range(1, SEGMENTS):
        above = (values - knots[..., piece - 1 : piece]).clamp(min=0)
        if piece < SEGMENTS - 1:
            above = torch.minimum(above, (knots[..., piece] - knots[..., piece - 1])[..., None])
        bent = bent + slopes[..., piece : piece + 1] * above
    return _as_before(bent, values).view_as(image)


def random_filter(image: Tensor, share: Tensor | float, rng: torch.Generator) -> Tensor:
    """Mixes every patch with what a small convolutional network of random weights, another for every patch, makes of it.

    Edges stay where they are, while contrasts are bent, turned round or made of other channels. Mean and standard deviation of a
    channel stay as they are. After the global intensity non-linear augmentation of Ouyang et al., IEEE Transactions on Medical
    Imaging 2022, doi 10.1109/TMI.2022.3224067.

    Args:
        image: (B, C, *spatial), about standard normal as nnU-Net normalises it.
        share: largest share of the filtered image, in [0, 1]; a patch's is uniform up to it. The result is differentiable in it.
        rng: on the device of `image`.

    Returns:
        (B, C, *spatial).
    """
    patches, channels = image.shape[:2]
    dims = image.ndim - 2
    convolve = functional.conv2d if dims == 2 else functional.conv3d
    widths = [channels, *[FILTER_CHANNELS] * (FILTER_LAYERS - 1), channels]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=rng.device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, device=rng.device)

    centre = functional.pad(torch.ones((1,) * dims, device=image.device), (1,) * (2 * dims))
    filtered = image.flatten(0, 1)[None]
    for layer, (ins, outs) in enumerate(pairwise(widths)):
        voxelwise = uniform(patches, 1, 1, *(1,) * dims) < 0.5
        weights = normal(patches, outs, ins, *(3,) * dims) * torch.where(voxelwise, centre, torch.ones_like(centre))
        filtered = convolve(filtered, weights.flatten(0, 1), normal(patches * outs), padding=1, groups=patches)
        if layer < FILTER_LAYERS - 1:
            filtered = functional.leaky_relu(filtered)
    values = image.flatten(2)
    mixed = torch.lerp(values, _as_before(filtered.view_as(values), values), share * uniform(patches, 1, 1))
    return _as_before(mixed, values).view_as(image)


def _as_before(changed: Tensor, values: Tensor) -> Tensor:
    """(B, C, voxels) changed intensities with the mean and the standard deviation that a channel had."""
    spread, mean = values.std(dim=2, keepdim=True), values.mean(dim=2, keepdim=True)
    changed_spread = changed.std(dim=2, keepdim=True).clamp(min=torch.finfo(values.dtype).eps)
    return (changed - changed.mean(dim=2, keepdim=True)) * (spread / changed_spread) + mean
