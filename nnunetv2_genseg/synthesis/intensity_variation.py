"""How the mean intensities of classes vary between real patches, and random shifts that vary alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.bounds import class_sizes

PATCHES = 64
"""The variation is that of so many patches, the latest ones."""
LEAST = 10
"""Voxels that a class needs in a patch; the mean of fewer varies by chance."""


class IntensityVariation:
    """Remembers the class intensities of the latest real patches.

    A shift is a random combination of their deviations from their mean. So its covariance over classes and channels is that of
    the real patches: classes that are always alike stay alike, and colours stay those that occur.

    Args:
        classes: of the scene.
        channels: of the image.
        device: where the patches are.
    """

    def __init__(self, classes: int, channels: int, device: torch.device) -> None:
        self.means = torch.zeros(PATCHES, classes, channels, device=device)
        """(PATCHES, classes, C) mean intensities; 0 where a class was not seen."""
        self.seen = torch.zeros(PATCHES, classes, dtype=torch.bool, device=device)
        """(PATCHES, classes) whether a patch showed a class."""
        self._next = 0

    def observe(self, intensities: Tensor, scene: Tensor) -> None:
        """Takes patches in the place of the oldest ones.

        Args:
            intensities: (B, classes, C) mean intensities of the classes.
            scene: (B, *spatial) int64 in [0, classes).
        """
        intensities, scene = intensities[-PATCHES:], scene[-PATCHES:]
        index = (torch.arange(len(scene), device=scene.device) + self._next) % PATCHES
        seen = (class_sizes(scene, self.means.shape[1]) >= LEAST) & intensities.isfinite().all(dim=2)
        self.seen.index_copy_(0, index, seen)
        self.means.index_copy_(0, index, torch.where(seen[..., None], intensities, 0.0).to(self.means))
        self._next = (self._next + len(scene)) % PATCHES

    def shift(self, count: int, rng: torch.Generator) -> Tensor:
        """(count, classes, C) random shifts; 0 for a class that fewer than two patches showed."""
        number = self.seen.sum(dim=0).clamp(min=1)[:, None]
        centre = self.means.sum(dim=0) / number
        deviations = torch.where(self.seen[..., None], self.means - centre, 0.0) / number.sqrt()
        weights = torch.randn(count, PATCHES, generator=rng, device=rng.device)
        return torch.einsum("bp,pkc->bkc", weights, deviations)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""
        return {"means": self.means, "seen": self.seen, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.means.copy_(state["means"])
        self.seen.copy_(state["seen"])
        self._next = state["next"]
