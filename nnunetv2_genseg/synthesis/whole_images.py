"""Pairs of whole images: the slices or the one volume of a batch share deformation, noise and tone curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.config import DeformationConfig
from nnunetv2_genseg.synthesis.intensity import tone_curve
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.masks import MaskChange, MaskDeformer
from nnunetv2_genseg.synthesis.sources import SourceContext
from nnunetv2_genseg.synthesis.spatial import affine, displacement_field, identity_grid, random_affine, warp_labels

TRIES = 10
"""Deformations that are drawn until the new mask is within the bounds; after that the real mask stays."""


def as_batch(volume: Tensor, flat: bool) -> Tensor:
    """(C, slices, height, width) as a batch: (slices, C, height, width) if `flat`, else (1, C, slices, height, width)."""
    return volume.movedim(1, 0) if flat else volume[None]


def as_volume(batch: Tensor, flat: bool) -> Tensor:
    """The inverse of `as_batch`."""
    return batch.movedim(0, 1) if flat else batch[0]


class WholeImageDeformer(MaskDeformer):
    """Deforms one whole image at a time. Shapes are kept in mm, and the bounds are volumes.

    Args:
        config: how far.
        codec: the dataset's classes.
        movable_axes: of the patch; a plan for slices has two.
        device: where the masks live.
    """

    def __init__(self, config: DeformationConfig, codec: LabelCodec, movable_axes: Sequence[bool], device: torch.device) -> None:
        super().__init__(config, codec, movable_axes, device)
        self.flat = len(self.movable_axes) == 2
        """Whether a batch holds the slices of one volume; a single volume otherwise."""
        self.still = False
        """Whether masks stay as they are, without any bounds."""
        self._spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    def begin(self, spacing: Sequence[float], largest: Tensor) -> None:
        """Prepares for an image.

        Args:
            spacing: of its three axes, mm.
            largest: (classes,) largest volume of every class in a real image, mm³.
        """
        self._spacing = tuple(spacing)
        voxel = torch.tensor(self._spacing, dtype=torch.float64).prod()
        self.largest = (largest.double() / voxel * 1.001).float().to(self.largest.device)  # of its own class a case is no larger

    def sample(
        self, labels: Tensor, rng: torch.Generator, amount: Tensor | float = 1.0, start: Tensor | None = None
    ) -> MaskChange:
        """As `MaskDeformer.sample`, for a batch from `as_batch`; slices move together and stay in their planes."""
        start = labels if start is None else start
        if self.still:
            spatial = labels.shape[1:]
            grid = identity_grid(spatial, labels.device).expand(len(labels), *spatial, len(spatial))
            return MaskChange(start, grid, torch.ones(len(labels), dtype=torch.bool, device=labels.device))
        real, before = (maps[None] if self.flat else maps for maps in (labels, start))
        spatial = real.shape[1:]
        movable = (False, *self.movable_axes) if self.flat else self.movable_axes
        extent = [n * step for n, step in zip(spatial, self._spacing, strict=True)]
        identity = identity_grid(spatial, labels.device)
        for _ in range(TRIES):
            theta = random_affine(1, extent, self.config.rotation, self.config.scaling, movable, rng)
            field = displacement_field(1, spatial, self.config.displacement, movable, rng, amount)
            grid = affine(identity + field, theta)
            accepted = bool(self.admits(real, warp_labels(before, grid)))
            if accepted:
                break
        grid, chosen = (grid, start) if accepted else (identity, labels)
        grid = grid[0, ..., : len(self.movable_axes)] if self.flat else grid
        return MaskChange(chosen, grid, torch.full((len(labels),), accepted, device=labels.device))


class GivenMask:
    """A mask source that gives the mask of one image, whatever the real one is."""

    new_shapes = True

    def __init__(self) -> None:
        self.wanted: Tensor | None = None
        """(B, *spatial) int64 class maps of the next call."""

    def training_step(self, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def sample(self, labels: Tensor, rng: torch.Generator, amount: Tensor | float = 1.0) -> Tensor:
        """The mask that was given."""
        assert self.wanted is not None
        return self.wanted

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class WholeImageContext(SourceContext):
    """What sources share that make pairs of whole images, each a batch from `as_batch`."""

    def normal(self, shape: Sequence[int], rng: torch.Generator) -> Tensor:
        """As for patches, but the same for all slices of an image."""
        return super().normal((1, *shape[1:]), rng).expand(tuple(shape))

    def toned(self, drawn: Tensor, width: Tensor | float, rng: torch.Generator) -> Tensor:
        """As for patches, with one curve for all slices of an image."""
        flat = drawn.ndim == 4
        return as_batch(tone_curve(as_volume(drawn, flat)[None], width, rng)[0], flat)
