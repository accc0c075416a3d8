"""Draws whole images with a generator that knows patches: overlapping tiles, blended."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor
from torch.nn import functional

from nnunetv2_genseg.generators import Generator

STEP = 0.5
"""Distance of two tiles, as a fraction of their extent; that of nnU-Net's own prediction."""
AT_ONCE = 4
"""Most images that the generator draws in one call."""


class TiledGenerator:
    """Draws images of any size; only `sample` and `style_shape` of the generator are used.

    All tiles have the same style, but where the style is a map of the patch: each tile then has its part of the image's.

    Args:
        generator: a trained one.
        patch_size: extent of the patches that it was trained on, voxels.
    """

    def __init__(self, generator: Generator, patch_size: Sequence[int]) -> None:
        self.generator = generator
        self.patch_size = tuple(patch_size)

    def _is_map(self) -> bool:
        dims = len(self.patch_size)
        return tuple(self.generator.style_shape(self.patch_size))[-dims:] == self.patch_size

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Shape of the style noise of one image of this extent; at least the patch's along every axis for a map."""
        wanted = [max(n, size) for n, size in zip(spatial, self.patch_size, strict=True)]
        return self.generator.style_shape(wanted if self._is_map() else self.patch_size)

    @torch.no_grad()
    def sample(self, condition: Tensor, style: Tensor) -> Tensor:
        """(B, channels, *spatial) and (B, *style_shape) to (B, image channels, *spatial)."""
        spatial = condition.shape[2:]
        missing = [max(0, size - n) for n, size in zip(spatial, self.patch_size, strict=True)]
        padding = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
        whole = functional.pad(condition, padding, mode="replicate") if any(missing) else condition
        drawn = torch.cat(
            [self._drawn(*part) for part in zip(torch.split(whole, AT_ONCE), torch.split(style, AT_ONCE), strict=True)]
        )
        inside = [slice(n // 2, n // 2 + extent) for n, extent in zip(missing, spatial, strict=True)]
        return drawn[(slice(None), slice(None), *inside)]

    def _drawn(self, condition: Tensor, style: Tensor) -> Tensor:
        """As `sample`, for images at least as large as the patch."""
        spatial, maps = tuple(condition.shape[2:]), self._is_map()
        steps = compute_steps_for_sliding_window(spatial, self.patch_size, STEP)
        weight = compute_gaussian(self.patch_size, value_scaling_factor=10, dtype=torch.float32, device=condition.device)
        total, weights = torch.zeros((), device=condition.device), condition.new_zeros(spatial)
        for corner in product(*steps):
            place: Any = (..., *(slice(start, start + size) for start, size in zip(corner, self.patch_size, strict=True)))
            tile = self.generator.sample(condition[place].contiguous(), style[place].contiguous() if maps else style)
            if not total.ndim:
                total = tile.new_zeros(*tile.shape[:2], *spatial)
            total[place] += tile * weight
            weights[place] += weight
        return total / weights
