"""Draws whole images with a generator that knows patches: overlapping tiles, blended."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Protocol, runtime_checkable

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor
from torch.nn import functional

from nnunetv2_genseg.generators import Generator

STEP = 0.5
"""Distance of two tiles, as a fraction of their extent; that of nnU-Net's own prediction."""
AT_ONCE = 4
"""Most images that the generator draws in one call."""


@runtime_checkable
class StyleOfMaps(Protocol):
    """A generator with a flat style that holds maps: a patch of a larger image has its part of them."""

    def style_grid(self) -> tuple[int, ...]:
        """Voxels per axis of which the corner of such a patch must be a multiple."""

    def crop_style(self, style: Tensor, spatial: Sequence[int], corner: Sequence[int], size: Sequence[int]) -> Tensor:
        """The style of a patch of each image.

        Args:
            style: (B, *style_shape) of images of the extent `spatial`.
            spatial: extent of the images, voxels, a multiple of the grid.
            corner: first voxel of the patch per axis.
            size: extent of the patch, voxels.

        Returns:
            (B, *style_shape) for the extent `size`.
        """


def for_whole_images(generator: Generator, patch_size: Sequence[int]) -> Generator:
    """The same generator if its `any_extent` is True: it draws images of any size as it is; else one that draws them in tiles."""
    return generator if getattr(generator, "any_extent", False) else TiledGenerator(generator, patch_size)  # type: ignore[return-value]


class TiledGenerator:
    """Draws images of any size; of the generator only `sample`, `style_shape` and `StyleOfMaps` are used.

    All tiles have the same style, but where the style is a map of the patch or holds maps (`StyleOfMaps`): each tile then has its
    part of the image's. So neighbouring tiles agree on the noise where they overlap.

    Args:
        generator: a trained one.
        patch_size: extent of the patches that it was trained on, voxels.
    """

    def __init__(self, generator: Generator, patch_size: Sequence[int]) -> None:
        self.generator = generator
        self.patch_size = tuple(patch_size)
        self.grid = generator.style_grid() if isinstance(generator, StyleOfMaps) else (1,) * len(self.patch_size)
        """Voxels per axis of which the corners of tiles are multiples."""

    def _is_map(self) -> bool:
        dims = len(self.patch_size)
        return tuple(self.generator.style_shape(self.patch_size))[-dims:] == self.patch_size

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Shape of the style noise of one image of this extent, enlarged as it is drawn."""
        own = self._is_map() or isinstance(self.generator, StyleOfMaps)
        wanted = [n + more for n, more in zip(spatial, self._missing(spatial), strict=True)]
        return self.generator.style_shape(wanted if own else self.patch_size)

    def _missing(self, spatial: Sequence[int]) -> list[int]:
        """Voxels per axis that an image lacks to be as large as the patch, and to end with a tile on the grid."""
        extents = zip(spatial, self.patch_size, self.grid, strict=True)
        return [size - n if n < size else (size - n) % step for n, size, step in extents]

    @torch.no_grad()
    def sample(self, condition: Tensor, style: Tensor) -> Tensor:
        """(B, channels, *spatial) and (B, *style_shape) to (B, image channels, *spatial)."""
        spatial = condition.shape[2:]
        missing = self._missing(spatial)
        padding = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
        whole = functional.pad(condition, padding, mode="replicate") if any(missing) else condition
        drawn = torch.cat(
            [self._drawn(*part) for part in zip(torch.split(whole, AT_ONCE), torch.split(style, AT_ONCE), strict=True)]
        )
        inside = [slice(n // 2, n // 2 + extent) for n, extent in zip(missing, spatial, strict=True)]
        return drawn[(slice(None), slice(None), *inside)]

    def _drawn(self, condition: Tensor, style: Tensor) -> Tensor:
        """As `sample`, for images that lack nothing."""
        spatial = tuple(condition.shape[2:])
        steps = compute_steps_for_sliding_window(spatial, self.patch_size, STEP)
        steps = [sorted({round(start / n) * n for start in starts}) for starts, n in zip(steps, self.grid, strict=True)]
        weight = compute_gaussian(self.patch_size, value_scaling_factor=10, dtype=torch.float32, device=condition.device)
        total, weights = torch.zeros((), device=condition.device), condition.new_zeros(spatial)
        for corner in product(*steps):
            place: Any = (..., *(slice(start, start + size) for start, size in zip(corner, self.patch_size, strict=True)))
            tile = self.generator.sample(condition[place].contiguous(), self._style_of_tile(style, spatial, corner, place))
            if not total.ndim:
                total = tile.new_zeros(*tile.shape[:2], *spatial)
            total[place] += tile * weight
            weights[place] += weight
        return total / weights

    def _style_of_tile(self, style: Tensor, spatial: Sequence[int], corner: Sequence[int], place: Any) -> Tensor:
        if isinstance(self.generator, StyleOfMaps):
            return self.generator.crop_style(style, spatial, corner, self.patch_size)
        return style[place].contiguous() if self._is_map() else style
