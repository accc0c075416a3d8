"""Bounds that real masks set on new ones: sizes of the classes, their connected components and their holes."""

from __future__ import annotations

import cc3d
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.statistics import class_sums


def class_sizes(labels: Tensor, classes: int) -> Tensor:
    """(B, classes) number of voxels of every class, float32, for (B, *spatial) class maps."""
    return class_sums(torch.ones(1, 1, device=labels.device).expand_as(labels.flatten(1))[:, None], labels, classes)[..., 0]


def at_border(labels: Tensor, classes: int) -> Tensor:
    """(B, classes) whether a class touches the border of the patch, for (B, *spatial) class maps."""
    faces = [labels.select(axis, end).flatten(1) for axis in range(1, labels.ndim) for end in (0, -1)]
    return class_sizes(torch.cat(faces, dim=1), classes) > 0


def within_sizes(
    labels: Tensor,
    new: Tensor,
    smallest: float,
    largest: Tensor,
    frozen_class: int | None = None,
    may_leave: Tensor | None = None,
    tolerated: float = 0.0,
) -> Tensor:
    """Whether no more than a tolerated part of the classes of new masks is lost, too small or larger than any seen.

    Each class is judged by itself: with many classes, one or another is out of bounds in nearly every new mask.

    Args:
        labels: (B, *spatial) int64, the real masks.
        new: (B, *spatial) int64.
        smallest: fraction of its voxels that every class keeps.
        largest: (classes,) most voxels of every class seen in one real patch.
        frozen_class: the last class, whose size does not matter (the ignore label).
        may_leave: (B, classes) booleans, of which it is enough that `smallest` of all classes together stays; none by default.
        tolerated: fraction of the real mask's classes that may be out of bounds, rounded down to a number of classes.

    Returns:
        (B,) booleans.
    """
    counted = slice(1, frozen_class)
    real, size = (class_sizes(maps, len(largest))[:, counted] for maps in (labels, new))

    def stays(now: Tensor, before: Tensor) -> Tensor:
        return (now >= (smallest * before).clamp(min=1)) | (before == 0)

    keeps = stays(size, real)
    if may_leave is not None:
        keeps |= may_leave[:, counted]
    out = (~(keeps & (size <= torch.maximum(largest[counted], real)))).sum(dim=1)
    bounded = out <= (tolerated * (real > 0).sum(dim=1)).floor()
    return bounded & stays(size.sum(dim=1), real.sum(dim=1))


def connected_components_and_holes(labels: Tensor, foreground: int) -> Tensor:
    """Connected components and holes of every class in every patch, counted on the CPU.

    Components touch by corners, holes by faces. In 3D a hole is a cavity; what is open to the patch's border is none.

    Args:
        labels: (B, *spatial) int64 class maps.
        foreground: the classes 1..foreground are counted.

    Returns:
        (B, foreground, 2) int64, on the device of `labels`: components, holes.
    """
    counts = torch.zeros(len(labels), foreground, 2, dtype=torch.long)
    for i, patch in enumerate(labels.cpu().numpy()):
        for j in range(foreground):
            structure = patch == j + 1
            if structure.any():
                counts[i, j] = torch.tensor(_components_and_holes(_cropped(structure)))
    return counts.to(labels.device)


def _cropped(structure: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The bounding box of what is True."""
    for axis in range(structure.ndim):
        shown = np.flatnonzero(structure.any(axis=tuple(i for i in range(structure.ndim) if i != axis)))
        structure = np.take(structure, range(shown[0], shown[-1] + 1), axis=axis)
    return structure


def _components_and_holes(structure: npt.NDArray[np.bool_]) -> tuple[int, int]:
    outside = np.pad(~structure, 1, constant_values=True).view(np.uint8)
    inside = structure.view(np.uint8)
    components = cc3d.connected_components(inside, connectivity=8 if structure.ndim == 2 else 26, return_N=True)[1]
    return components, cc3d.connected_components(outside, connectivity=4 if structure.ndim == 2 else 6, return_N=True)[1] - 1


class ComponentBounds:
    """Fewest and most components and holes of every class in the real patches seen so far that show it.

    Args:
        foreground: number of foreground classes.
        device: where the bounds are kept.
    """

    def __init__(self, foreground: int, device: torch.device) -> None:
        self.fewest = torch.full((foreground, 2), torch.iinfo(torch.long).max, device=device)
        self.most = torch.full((foreground, 2), -1, device=device)

    def observe(self, labels: Tensor) -> None:
        """Widens the bounds so that real patches, (B, *spatial), are within."""
        counts = connected_components_and_holes(labels, len(self.most))
        shown = counts[..., :1] > 0
        self.fewest = torch.minimum(self.fewest, torch.where(shown, counts, self.fewest).amin(dim=0))
        self.most = torch.maximum(self.most, torch.where(shown, counts, self.most).amax(dim=0))

    def admit(self, labels: Tensor) -> Tensor:
        """(B, foreground) booleans: whether a class is within the bounds, or not shown, in maps of (B, *spatial)."""
        counts = connected_components_and_holes(labels, len(self.most))
        within = (self.fewest <= counts) & (counts <= self.most)
        return (within | (counts[..., :1] == 0)).all(dim=2)

    def state_dict(self) -> dict[str, Tensor]:
        """The bounds, for a checkpoint."""
        return {"fewest": self.fewest, "most": self.most}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.fewest.copy_(state["fewest"])
        self.most.copy_(state["most"])
