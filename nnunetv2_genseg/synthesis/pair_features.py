"""What can be seen in a pair: intensities, texture and sharpness of each class and of its boundary, and the shape of its mask."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_genseg.generators.smoothing import neighbourhood_mean
from nnunetv2_genseg.synthesis.statistics import class_sums

SMALLEST = 1e-3
"""Spreads are compared by their logarithms, those below this, in normalised intensities, alike."""


def pair_features(image: Tensor, labels: Tensor, foreground: int) -> Tensor:
    """Figures of pairs, from their voxels alone, at a cost that hardly depends on the number of classes.

    A class has two regions: the voxels that touch another class, and the others. Of each region and channel: mean, and the
    logarithms of standard deviation, gradient magnitude and high-frequency energy (the difference to the mean of 3 voxels along
    every axis). Of each foreground class and channel: the contrast across its boundary, from one voxel to the next. Of each
    foreground class: the fraction of the patch that it takes, and how many of its voxels touch another class.

    Args:
        image: (B, C, *spatial).
        labels: (B, *spatial) int64 class maps: 0..foreground, and foreground + 1 for the ignore label, which is left out.
        foreground: number of foreground classes.

    Returns:
        (B, features) float32; NaN where a patch lacks a class, or its boundary.
    """
    classes, image = foreground + 1, image.float()
    known = labels <= foreground
    touching = torch.zeros_like(known)
    steps = torch.zeros(len(image), classes, image.shape[1] + 1, device=image.device)
    for axis in range(1, labels.ndim):
        count = labels.shape[axis] - 1
        one, two = (labels.narrow(axis, start, count) for start in (0, 1))
        differs = (one != two) & (torch.maximum(one, two) <= foreground)
        for start in (0, 1):
            touching.narrow(axis, start, count).logical_or_(differs)
        step = (image.narrow(axis + 1, 0, count) - image.narrow(axis + 1, 1, count)) * torch.where(one > two, 1, -1)[:, None]
        counted = torch.cat([step, torch.ones_like(step[:, :1])], dim=1) * differs[:, None]
        steps += class_sums(counted, torch.maximum(one, two).clamp(max=foreground), classes)
    region = torch.where(known, labels + classes * touching, 2 * classes)
    sums = class_sums(_maps(image), region, 2 * classes + 1)[:, :-1]
    size = sums[..., -1:]
    mean, square, gradient, fine = _of_shown(sums[..., :-1], size).chunk(4, dim=2)
    spreads = [torch.log(spread.clamp(min=SMALLEST)) for spread in ((square - mean.square()).clamp(min=0).sqrt(), gradient, fine)]
    inside, border = size[:, 1:classes], size[:, classes + 1 :]
    shape = [(inside + border) / known.flatten(1).sum(dim=1).clamp(min=1).view(-1, 1, 1), _of_shown(border, inside + border)]
    contrast = _of_shown(steps[:, 1:, :-1], steps[:, 1:, -1:])
    return torch.cat([part.flatten(1) for part in (mean, *spreads, contrast, *shape)], dim=1)


def _maps(image: Tensor) -> Tensor:
    """(B, 4·C + 1, *spatial): intensities, their squares, gradient magnitudes, high frequencies; and ones, to be counted."""
    slopes = torch.gradient(image, dim=list(range(2, image.ndim)))
    gradient = torch.stack([slope.square() for slope in slopes]).sum(dim=0).sqrt()
    fine = (image - neighbourhood_mean(image)).abs()
    return torch.cat([image, image.square(), gradient, fine, torch.ones_like(image[:, :1])], dim=1)


def _of_shown(sums: Tensor, size: Tensor) -> Tensor:
    """Sums divided by sizes, NaN where a size is 0."""
    return torch.where(size > 0, sums / size.clamp(min=1), torch.nan)
