"""Euclidean distances on the device, within a reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distance_to(target: Tensor, reach: int, axes: Sequence[bool] | None = None) -> Tensor:
    """Distance of every voxel to the nearest voxel of a set, 0 within it, exact up to a reach.

    An axis at a time the smallest of the squared distances so far plus the squared offset is taken (Felzenszwalb and
    Huttenlocher, Theory of Computing 2012, doi 10.4086/toc.2012.v008a019), by trying every offset within reach.

    Args:
        target: (B, *spatial) booleans.
        reach: largest offset along an axis, voxels; what is farther away counts as `reach`.
        axes: for each spatial axis whether distances are measured along it: with False for slices, every slice is by itself.
            None: along all.

    Returns:
        (B, *spatial) float32, voxels, at most `reach`.
    """
    far = float(reach**2)
    squared = torch.full(target.shape, far, device=target.device).masked_fill(target, 0.0)
    for axis in (axis for axis in range(1, target.ndim) if axes is None or axes[axis - 1]):
        nearest, extent = squared.clone(), target.shape[axis]
        for offset in range(1, min(reach, extent - 1) + 1):
            ahead = squared.narrow(axis, offset, extent - offset) + offset**2
            behind = squared.narrow(axis, 0, extent - offset) + offset**2
            part = nearest.narrow(axis, 0, extent - offset)
            torch.minimum(part, ahead, out=part)
            part = nearest.narrow(axis, offset, extent - offset)
            torch.minimum(part, behind, out=part)
        squared = nearest
    return squared.clamp(max=far).sqrt()
