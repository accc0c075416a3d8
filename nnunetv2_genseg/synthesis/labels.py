"""nnU-Net's training targets as class maps, and back: labels, overlapping regions and the ignore label alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelCodec:
    """Class maps hold 0 for background, 1..foreground for the classes and foreground + 1 for the ignore label.

    With regions a class is a set of regions that occur together: two labels that belong to the same regions are one
    class, since no target tells them apart.
    """

    foreground: int
    """Number of foreground classes."""
    has_ignore: bool
    regions: Tensor | None = None
    """(classes, R[+1]) booleans: the regions of every class, the ignore label's last; None if targets are labels."""
    labels: tuple[int, ...] = ()
    """A label of every class, 0 for the background and for the ignore label."""

    @classmethod
    def from_labels(cls, foreground_labels: Sequence[int], ignore_label: int | None) -> LabelCodec:
        """For targets of shape (B, 1, *spatial) with nnU-Net's consecutive labels."""
        if list(foreground_labels) != list(range(1, len(foreground_labels) + 1)):
            raise ValueError(f"nnU-Net's labels must be consecutive from 1 on, found {list(map(int, foreground_labels))}")
        ignored = [] if ignore_label is None else [0]
        return cls(len(foreground_labels), ignore_label is not None, labels=(0, *foreground_labels, *ignored))

    @classmethod
    def from_regions(cls, regions: Sequence[int | Sequence[int]], has_ignore: bool) -> LabelCodec:
        """For boolean targets of shape (B, R[+1], *spatial), the ignore label's channel last."""
        members = [{region} if isinstance(region, int) else set(region) for region in regions]
        labels = sorted(set().union(*members) - {0}, reverse=True)
        label_of = {tuple(label in region for region in members): label for label in labels}
        patterns = sorted(label_of, reverse=True)
        rows = [(False,) * len(members), *patterns]
        representatives = [0, *(label_of[pattern] for pattern in patterns), *([0] if has_ignore else [])]
        if has_ignore:
            rows = [(*row, False) for row in rows] + [(False,) * len(members) + (True,)]
        return cls(len(patterns), has_ignore, torch.tensor(rows, dtype=torch.bool), tuple(representatives))

    @property
    def classes(self) -> int:
        """Background, foreground classes and, if there is one, the ignore label."""
        return 1 + self.foreground + int(self.has_ignore)

    def to_classes(self, target: Tensor) -> Tensor:
        """(B, 1, *spatial) labels or (B, R[+1], *spatial) booleans to (B, *spatial) int64.

        Raises:
            ValueError: the target holds a label or a set of regions that the dataset does not declare.
        """
        if self.regions is None:
            classes = target[:, 0].long()
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < self.classes:
                found = ", ".join(str(label) for label in torch.unique(classes).tolist() if not 0 <= label < self.classes)
                raise ValueError(
                    f"target holds labels outside 0..{self.classes - 1}, which dataset.json declares: {found}; correct "
                    "labelsTr or dataset.json and run nnUNetv2_plan_and_preprocess again"
                )
            return classes
        classes = torch.full_like(target[:, 0], -1, dtype=torch.long)
        spatial = (1,) * (target.ndim - 2)
        for index, row in enumerate(self.regions.to(target.device)):
            classes[(target.bool() == row.view(1, -1, *spatial)).all(dim=1)] = index
        if (classes < 0).any():
            raise ValueError("target holds a combination of regions that no label of dataset.json belongs to")
        return classes

    def to_target(self, classes: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, *spatial) class maps to the target that nnU-Net's loss expects, of `dtype`."""
        if self.regions is None:
            return classes[:, None].to(dtype)
        return self.regions.to(classes.device)[classes].movedim(-1, 1).to(dtype)
