"""The mean of small neighbourhoods."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def neighbourhood_mean(maps: Tensor, axes: Sequence[bool] | None = None) -> Tensor:
    """Mean of the neighbourhood of every voxel, of what lies within the patch.

    Args:
        maps: (B, C, *spatial).
        axes: whether the neighbourhood has 3 voxels along each spatial axis, or 1; None: 3 along all.

    Returns:
        (B, C, *spatial).
    """
    pool = functional.avg_pool2d if maps.ndim == 4 else functional.avg_pool3d
    widest = [3 if wide else 1 for wide in axes or (True,) * (maps.ndim - 2)]
    # avg_pool3d takes no kernel larger than the patch
    kernel = [min(size, n - 1 + n % 2) for size, n in zip(widest, maps.shape[2:], strict=True)]
    return pool(maps, kernel, stride=1, padding=[n // 2 for n in kernel], count_include_pad=False)
