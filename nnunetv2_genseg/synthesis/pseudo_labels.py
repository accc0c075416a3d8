"""Labels that a network gives to patches without labels, and the bounds that real patches set on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.bounds import class_sizes
from nnunetv2_genseg.synthesis.labels import LabelCodec

UNSURE = 0.05
"""Where nothing can be ignored: largest fraction of a patch whose labels may be unsure."""
SURE = 0.05
"""Smallest fraction of a patch whose labels are sure: a loss over hardly any voxels is noise."""


class PseudoLabels:
    """Takes class maps from a network's output, and refuses those whose classes are smaller or larger than in real patches.

    A class that every real patch shows, such as an organ that fills the images, must be shown.

    Args:
        codec: the dataset's classes, with an ignore label.
        confidence: voxels whose label has a lower probability are not sure.
        ignores: whether voxels that are not sure get the ignore label; otherwise patches with many of them are refused.
        device: where the patches are.
    """

    def __init__(self, codec: LabelCodec, confidence: float, ignores: bool, device: torch.device) -> None:
        self.codec = codec
        self.confidence = confidence
        self.ignores = ignores
        self.fewest = torch.full((codec.foreground,), torch.inf, device=device)
        """(foreground,) fewest voxels of every class in one real patch so far."""
        self.most = torch.zeros(codec.foreground, device=device)
        """(foreground,) most voxels."""

    def observe(self, labels: Tensor) -> None:
        """Widens the bounds to the class sizes of real patches, (B, *spatial) class maps.

        In a patch that is not annotated all over, a class may be of any size.
        """
        sizes = self._sizes(labels)
        partial = (labels > self.codec.foreground).any()
        self.fewest = torch.minimum(self.fewest, sizes.amin(dim=0))
        self.most = torch.maximum(self.most, torch.where(partial, torch.inf, sizes.amax(dim=0)))

    def read(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class maps of patches.

        Args:
            logits: (B, heads, *spatial), a head for each label, the background's first, or for each region.

        Returns:
            (B, *spatial) int64 class maps; (B,) booleans, whether each may be used; 0-d fraction of the voxels that are sure.
        """
        labels, sure = self.classify(logits)
        sizes = self._sizes(labels)
        usable = ((self.fewest <= sizes) & (sizes <= self.most)).all(dim=1)
        share = sure.flatten(1).float().mean(dim=1)
        if not self.ignores:
            return labels, usable & (share >= 1 - UNSURE), share.mean()
        return labels.masked_fill(~sure, self.codec.foreground + 1), usable & (share >= SURE), share.mean()

    def classify(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(B, *spatial) int64 class maps without the ignore label, and booleans, whether each voxel's label is sure."""
        return self._of_labels(logits) if self.codec.regions is None else self._of_regions(logits)

    def _sizes(self, labels: Tensor) -> Tensor:
        return class_sizes(labels, self.codec.classes)[:, 1 : self.codec.foreground + 1]

    def _of_labels(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        probability, labels = logits.float().softmax(dim=1).max(dim=1)
        return labels, probability >= self.confidence

    def _of_regions(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        probability = logits.float().sigmoid()
        shown = torch.cat([probability > 0.5, torch.zeros_like(probability[:, :1], dtype=torch.bool)], dim=1)
        labels = self.codec.to_classes(shown)
        known = (self.codec.to_target(labels, torch.bool) == shown).all(dim=1)  # else a set of regions that no label has
        return labels, known & (torch.maximum(probability, 1 - probability).amin(dim=1) >= self.confidence)

    def state_dict(self) -> dict[str, Any]:
        """The bounds."""
        return {"fewest": self.fewest, "most": self.most}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.fewest.copy_(state["fewest"])
        self.most.copy_(state["most"])
