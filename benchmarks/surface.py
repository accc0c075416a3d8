"""How far apart the surfaces of two segmentations lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def hausdorff95(first: NDArray[np.bool_], second: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """95th percentile of the distances of each surface's voxels to the other surface, both ways together.

    Args:
        first: mask.
        second: mask of the same shape.
        spacing: of the voxels, mm, per axis.

    Returns:
        mm; NaN if a mask is empty.
    """
    if not first.any() or not second.any():
        return float("nan")
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    distances = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    both = np.concatenate([distances[1][surfaces[0]], distances[0][surfaces[1]]])
    return float(np.percentile(both, 95))
