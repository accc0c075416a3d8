"""What every way to paste offers, and the registry that finds one by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nnunetv2_genseg.config import DeformationConfig
from nnunetv2_genseg.registry import Registry
from nnunetv2_genseg.synthesis.labels import LabelCodec


@dataclass
class PasteContext:
    """What all ways to paste share."""

    codec: LabelCodec
    deformation: DeformationConfig
    """How far a structure that is moved may be turned and scaled."""
    movable_axes: tuple[bool, ...]
    """False for an axis along which nothing is moved (anisotropic 3D)."""
    free_classes: tuple[int, ...] = ()
    """Classes that occur at any place of an image, once the training cases have been looked at. All others have a fixed
    anatomical place."""

    def free(self, labels: Tensor) -> Tensor:
        """(B, *spatial) booleans: the voxels of the free classes, for class maps of that shape."""
        shown = torch.zeros_like(labels, dtype=torch.bool)
        for index in self.free_classes:
            shown |= labels == index
        return shown


class Paste(Protocol):
    """Chooses what of a donor's patch is pasted."""

    def __call__(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The donor, as it is or moved, and the part of it that is pasted.

        Args:
            image: (B, C, *spatial) images of the donors.
            labels: (B, *spatial) int64 their class maps.
            rng: on their device.

        Returns:
            Images and class maps as above, and (B, *spatial) booleans: the voxels that replace those of the receiver at the
            same place. Where none is True, nothing is pasted.
        """


PASTES: Registry[Callable[[PasteContext], Paste]] = Registry("paste.kinds", __package__ or "")
