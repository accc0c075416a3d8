"""New masks from the real ones by rotation, scaling and elastic deformation, within the bounds of the dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.config import DeformationConfig
from nnunetv2_genseg.synthesis.bounds import at_border, class_sizes, within_sizes
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.spatial import affine, displacement_field, identity_grid, per_patch, random_affine, warp_labels

SMALLEST = 0.3
"""A class that keeps less than this fraction of its voxels makes the new mask be rejected; of classes that the patch's border
cuts, only if all classes together keep less."""
TOLERATED = 0.25
"""Fraction of a patch's classes that may be out of bounds: none of three, 16 of 65. Of many small structures one nearly always
is, so that hardly a new mask would be accepted if none might be."""


@dataclass(frozen=True)
class MaskChange:
    """How the masks of a batch change. Nothing is deformed yet."""

    labels: Tensor
    """(B, *spatial) int64 class maps before the deformation: the real ones, or those of a mask source."""
    grid: Tensor
    """(B, *spatial, dims) sampling positions of the deformation."""
    accepted: Tensor
    """(B,) booleans: False where the new mask was rejected; then the real mask stays, not deformed."""

    def deformed(self) -> Tensor:
        """(B, *spatial) int64: the new masks."""
        return warp_labels(self.labels, self.grid)


class MaskDeformer:
    """Deforms masks. Rejects a mask if more than `TOLERATED` of its classes are lost, too small or larger than any seen.

    Args:
        config: how far.
        codec: the dataset's classes.
        movable_axes: False for an axis along which nothing is deformed (anisotropic 3D).
        device: where the masks live.
    """

    def __init__(self, config: DeformationConfig, codec: LabelCodec, movable_axes: Sequence[bool], device: torch.device) -> None:
        self.config = config
        self.movable_axes = tuple(movable_axes)
        self.ignored = codec.foreground + 1 if codec.has_ignore else None
        self.largest = torch.zeros(codec.classes, device=device)
        """(classes,) most voxels of every class in one real patch so far."""

    def observe(self, labels: Tensor) -> None:
        """Records how large the classes of real patches, (B, *spatial), are."""
        self.largest = torch.maximum(self.largest, class_sizes(labels, len(self.largest)).amax(dim=0))

    def sample(
        self, labels: Tensor, rng: torch.Generator, amount: Tensor | float = 1.0, start: Tensor | None = None
    ) -> MaskChange:
        """Draws a new mask for every patch.

        A class that the patch's border cuts may shrink or leave, if all classes together keep at least the fraction `SMALLEST` of
        their voxels: else patches with many structures would keep their masks.

        Args:
            labels: (B, *spatial) int64 real class maps.
            rng: on their device.
            amount: factor on the elastic displacement.
            start: (B, *spatial) int64, deformed in place of the real masks.
        """
        count, spatial = len(labels), labels.shape[1:]
        start = labels if start is None else start
        identity = identity_grid(spatial, labels.device).expand(count, *spatial, len(spatial))
        theta = random_affine(count, spatial, self.config.rotation, self.config.scaling, self.movable_axes, rng)
        field = displacement_field(count, spatial, self.config.displacement, self.movable_axes, rng, amount)
        grid = affine(identity + field, theta)
        accepted = self.admits(labels, warp_labels(start, grid), at_border(labels, len(self.largest)))
        chosen = per_patch(accepted, labels)
        return MaskChange(torch.where(chosen, start, labels), torch.where(chosen[..., None], grid, identity), accepted)

    def admits(self, labels: Tensor, new: Tensor, may_leave: Tensor | None = None) -> Tensor:
        """(B,) booleans: whether new masks, (B, *spatial), are within the bounds, given the real ones."""
        return within_sizes(labels, new, SMALLEST, self.largest, self.ignored, may_leave, TOLERATED)

    def unbound(self) -> None:
        """Admits classes of any size from now on."""
        self.largest.fill_(math.inf)

    def state_dict(self) -> dict[str, Any]:
        """The bounds."""
        return {"largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.largest.copy_(state["largest"])
