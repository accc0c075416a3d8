"""How good a teacher is on the images that it labels: whether it gives a patch and its mirror image the same labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.bounds import class_sizes

PATCHES = 16
"""Patches an epoch by which a teacher is measured."""
KEPT = 0.7
"""How much of the counts of earlier epochs is kept."""
POOR, GOOD = 0.7, 0.8
"""Agreement up to which a teacher's labels are not used at all, and from which on they are used in full."""


class TeacherQuality:
    """The Dice between a teacher's labels of unlabelled patches and of their mirror images.

    nnU-Net's networks learn that the mirror image of a patch has the mirrored labels. Where a network has not learned a class,
    its labels of the two differ. Two other measures tell less. The Dice on labelled training patches is that of memorised ones,
    and so is nnU-Net's own on validation patches with the fold `all`; those of other folds need not look like the unlabelled
    images. The agreement with the network of the last iteration rises as the learning rate falls, whatever the labels are worth.

    Args:
        foreground: number of foreground classes.
        device: where the patches are.
        synchronise: averages tensors over the processes, in place.
    """

    def __init__(self, foreground: int, device: torch.device, synchronise: Callable[[Iterable[Tensor]], None]) -> None:
        self.agreed = torch.zeros(foreground, device=device)
        """(foreground,) voxels of every class in both labellings; earlier epochs count less."""
        self.sizes = torch.zeros(foreground, device=device)
        """(foreground,) voxels of every class, the sum of both labellings."""
        self.synchronise = synchronise
        self.agreement = 0.0
        """Dice, the mean of the classes that were seen; 0 as long as there were none."""

    def measure(self, patches: Iterable[Tensor], label: Callable[[Tensor], Tensor], axes: Sequence[int]) -> None:
        """Measures the teacher at the end of an epoch; all processes take part.

        Args:
            patches: (1, C, *spatial), not augmented.
            label: the teacher, (B, C, *spatial) to (B, *spatial) class maps.
            axes: along which nnU-Net mirrors, of the spatial ones; one a patch is taken in turn.
        """
        self.agreed *= KEPT
        self.sizes *= KEPT
        foreground = len(self.sizes)
        for i, patch in enumerate(patches):
            axis = axes[i % len(axes)]
            first, mirrored = label(torch.cat([patch, patch.flip(2 + axis)]))
            maps = torch.stack([first, mirrored.flip(axis)])
            self.sizes += class_sizes(maps, foreground + 1)[:, 1:].sum(dim=0)
            both = torch.where(maps[0] == maps[1], maps[0], 0)
            self.agreed += class_sizes(both[None], foreground + 1)[0, 1:]
        self.synchronise([self.agreed, self.sizes])
        self._read()

    def _read(self) -> None:
        seen = self.sizes > 0
        dice = 2 * self.agreed[seen] / self.sizes[seen]
        self.agreement = float(dice.mean()) if len(dice) else 0.0

    @property
    def trust(self) -> float:
        """Factor on the share of unlabelled patches, in [0, 1]: from none for a poor teacher to 1 for a good one."""
        return min(max((self.agreement - POOR) / (GOOD - POOR), 0.0), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"agreed": self.agreed, "sizes": self.sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.agreed.copy_(state["agreed"])
        self.sizes.copy_(state["sizes"])
        self._read()
