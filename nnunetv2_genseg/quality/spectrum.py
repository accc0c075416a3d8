"""Sharpness: how much of the fine texture of real images synthetic ones have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_NYQUIST = 0.25
"""Cycles per voxel."""


def high_frequency_ratio(real: Tensor, synthetic: Tensor) -> Tensor:
    """Energy above half of the Nyquist frequency in synthetic images, over that in the real ones.

    Energies are averaged over the patches of a channel before they are divided. A frequency counts if its radius (root of the sum
    of squares over the axes) is above 0.25 cycles per voxel: so a rotation alone changes nothing. A change of size does move
    energy across that bound; over random factors that are log-uniform about 1 the two directions nearly cancel. The mean of a
    patch is subtracted and a Hann window applied along every axis, so that the jump from a border to the opposite one is no
    high frequency.

    Args:
        real: (B, C, *spatial), 2D or 3D.
        synthetic: (B', C, *spatial), made from these images or from others like them.

    Returns:
        (C,) 1 for equally sharp images, below 1 for blurred ones, above for noisier or sharpened ones; NaN for a channel that is
        constant in all real patches.

    Examples:
        >>> sharp = torch.randn(4, 1, 32, 32)
        >>> blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
        >>> bool(high_frequency_ratio(sharp, blurred) < 0.3)
        True
    """
    return _high_frequency_energy(synthetic) / _high_frequency_energy(real)


def _high_frequency_energy(images: Tensor) -> Tensor:
    """(C,) mean over the patches of (B, C, *spatial)."""
    spatial = images.shape[2:]
    axes = tuple(range(2, images.ndim))
    window, radius = torch.ones((), device=images.device), torch.zeros((), device=images.device)
    for extent in spatial:
        position = (torch.arange(extent, device=images.device) + 0.5) / extent
        window = window[..., None] * (math.pi * position).sin().square()
        radius = radius[..., None] + torch.fft.fftfreq(extent, device=images.device).square()
    mean = (images * window).sum(dim=axes, keepdim=True) / window.sum()
    power = torch.fft.fftn((images - mean) * window, dim=axes).abs().square()
    energy: Tensor = (power * (radius > HALF_NYQUIST**2)).sum(dim=axes).mean(dim=0)
    return energy
