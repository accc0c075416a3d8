"""Convolutions with a dilated kernel; in 3D by way of dense ones, which are faster."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def convolve(x: Tensor, kernel: Tensor, stride: Sequence[int], dilation: int) -> Tensor:
    """Convolves with zeros around the border, so that a stride of 1 keeps the extent.

    The points of a dilated kernel lie on a coarser grid. In 3D the voxels of every such grid become a patch of their own, and the
    kernel is applied without gaps: torch's weight gradient for a dilated one takes several times as long on a CPU. Both
    differ by rounding only.

    Args:
        x: (B, inputs, *spatial).
        kernel: (outputs, inputs, *extent), odd extents.
        stride: per axis.
        dilation: of every axis over which the kernel extends.

    Returns:
        (B, outputs, *spatial / stride).
    """
    gaps = [dilation if size > 1 else 1 for size in kernel.shape[2:]]
    if x.ndim == 4 or dilation == 1 or not _fits(x.shape[2:], stride, gaps):
        convolution = functional.conv2d if x.ndim == 4 else functional.conv3d
        padding = [gap * (size // 2) for gap, size in zip(gaps, kernel.shape[2:], strict=True)]
        return convolution(x, kernel, None, tuple(stride), padding, dilation)
    # a stride as wide as the gaps leaves one grid of every axis, a stride of 1 all of them
    kept = [slice(None, None, gap if step == gap else 1) for step, gap in zip(stride, gaps, strict=True)]
    shown = x[(slice(None), slice(None), *kept)]
    grids = [gap if step == 1 else 1 for step, gap in zip(stride, gaps, strict=True)]
    steps = [step if gap == 1 else 1 for step, gap in zip(stride, gaps, strict=True)]
    padding = [size // 2 for size in kernel.shape[2:]]
    return _joined(functional.conv3d(_split(shown, grids), kernel, None, steps, padding), grids)


def _fits(spatial: Sequence[int], stride: Sequence[int], gaps: Sequence[int]) -> bool:
    """Whether every axis has grids of equal extent, or its stride leaves one of them."""
    return all(
        step == gap or gap == 1 or (step == 1 and n % gap == 0) for n, step, gap in zip(spatial, stride, gaps, strict=True)
    )


def _split(x: Tensor, grids: Sequence[int]) -> Tensor:
    """(B, C, *spatial) to (B * number of grids, C, *spatial / grids)."""
    dims = len(grids)
    coarse = [n // grid for n, grid in zip(x.shape[2:], grids, strict=True)]
    parts = x.reshape(*x.shape[:2], *(size for pair in zip(coarse, grids, strict=True) for size in pair))
    order = [0, *(3 + 2 * axis for axis in range(dims)), 1, *(2 + 2 * axis for axis in range(dims))]
    return parts.permute(order).reshape(-1, x.shape[1], *coarse)


def _joined(x: Tensor, grids: Sequence[int]) -> Tensor:
    """The inverse of `_split`."""
    dims, coarse = len(grids), x.shape[2:]
    parts = x.view(-1, *grids, x.shape[1], *coarse)
    order = [0, 1 + dims, *(axis for i in range(dims) for axis in (2 + dims + i, 1 + i))]
    return parts.permute(order).reshape(len(parts), x.shape[1], *(n * grid for n, grid in zip(coarse, grids, strict=True)))
