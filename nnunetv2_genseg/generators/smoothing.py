"""The mean of small neighbourhoods."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def neighbourhood_mean(maps: Tensor) -> Tensor:
    """Mean of the 3-voxel neighbourhood of every voxel of (B, C, *spatial), of what lies within the patch."""
    pool = functional.avg_pool2d if maps.ndim == 4 else functional.avg_pool3d
    kernel = [min(3, n - 1 + n % 2) for n in maps.shape[2:]]  # avg_pool3d takes no kernel larger than the patch
    return pool(maps, kernel, stride=1, padding=[n // 2 for n in kernel], count_include_pad=False)
