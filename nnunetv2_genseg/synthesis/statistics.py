"""Statistics of patches: sums by class, at a cost that does not depend on the number of classes, and a sample of voxels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SAMPLE = 32768
"""Statistics that need no more are taken from at most this many voxels of a patch."""
PARTS = 64
"""Partial sums of a class."""


def sample_voxels(values: Tensor) -> Tensor:
    """(..., N) to (..., min(N, SAMPLE)): the same pseudo-random voxels in every call, spread over the whole patch.

    A fixed stride would follow the memory layout: at 128 x 128 x 128 voxels it would read two planes only.
    """
    count = values.shape[-1]
    return values if count <= SAMPLE else values.index_select(-1, _sample_index(count, values.device))


@lru_cache(maxsize=16)
def _sample_index(count: int, device: torch.device) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:SAMPLE].sort().values.to(device)


def class_sums(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sums the values of the voxels of every class.

    Args:
        values: (B, C, *spatial) floating point.
        labels: (B, *spatial) int64 in [0, classes).
        classes: number of classes.

    Returns:
        (B, classes, C).
    """
    flat = labels.flatten(1)
    # Many partial sums: one sum over millions of float32 values loses digits, and parallel additions to one address wait.
    part = torch.arange(flat.shape[1], device=labels.device) % PARTS
    index = (flat * PARTS + part)[:, None].expand(-1, values.shape[1], -1)
    sums = values.new_zeros(*values.shape[:2], classes * PARTS).scatter_add_(2, index, values.flatten(2))
    return sums.view(*values.shape[:2], classes, PARTS).sum(dim=3).transpose(1, 2)
