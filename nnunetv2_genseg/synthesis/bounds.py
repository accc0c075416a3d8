"""Of how many pieces a structure is and how many holes it has, and the bounds that real patches set on both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor


def topology(labels: Tensor, foreground: int) -> Tensor:
    """Connected components and holes of every class in every patch.

    Components touch by corners, holes by faces. In 3D a hole is a cavity; what is open to the patch's border is none.

    Args:
        labels: (B, *spatial) int64 class maps.
        foreground: the classes 1..foreground are counted.

    Returns:
        (B, foreground, 2) int64, on the device of `labels`: components, holes.
    """
    counts = torch.zeros(len(labels), foreground, 2, dtype=torch.long)
    for i, patch in enumerate(labels.cpu().numpy()):
        for j, box in enumerate(ndimage.find_objects(patch, max_label=foreground)):
            if box is not None:
                counts[i, j] = torch.tensor(_components_and_holes(patch[box] == j + 1))
    return counts.to(labels.device)


def _components_and_holes(structure: npt.NDArray[np.bool_]) -> tuple[int, int]:
    corners = ndimage.generate_binary_structure(structure.ndim, structure.ndim)
    outside = np.pad(~structure, 1, constant_values=True)
    return ndimage.label(structure, corners)[1], ndimage.label(outside)[1] - 1


class TopologyBounds:
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
        counts = topology(labels, len(self.most))
        shown = counts[..., :1] > 0
        self.fewest = torch.minimum(self.fewest, torch.where(shown, counts, self.fewest).amin(dim=0))
        self.most = torch.maximum(self.most, torch.where(shown, counts, self.most).amax(dim=0))

    def admit(self, labels: Tensor) -> Tensor:
        """(B,) booleans: whether every class that a map, of (B, *spatial), shows is within the bounds."""
        counts = topology(labels, len(self.most))
        within = (self.fewest <= counts) & (counts <= self.most)
        return (within | (counts[..., :1] == 0)).flatten(1).all(dim=1)

    def state(self) -> dict[str, Tensor]:
        """The bounds, for a checkpoint."""
        return {"fewest": self.fewest, "most": self.most}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.fewest.copy_(state["fewest"])
        self.most.copy_(state["most"])
