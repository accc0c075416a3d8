"""nnU-Net's training targets as class maps, and back: labels, overlapping regions and the ignore label alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nnunetv2_genseg.config import GenSegError


@dataclass(frozen=True)
class LabelCodec:
    """Maps targets to class maps and back, without waiting for a GPU.

    Class maps hold 0 for background, 1..foreground for the classes and foreground + 1 for the ignore label. With regions, a
    class is a set of regions that occur together. Labels that belong to the same regions are one class, since no target
    tells them apart.
    """

    foreground: int
    """Number of foreground classes."""
    has_ignore: bool
    regions: Tensor | None = None
    """(classes, R[+1]) booleans: the regions of every class, the ignore label's last; None if targets are labels."""
    labels: tuple[int, ...] = ()
    """A label of every class, 0 for the background and for the ignore label."""
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """`regions` on every device that asked for it."""

    @classmethod
    def from_labels(cls, foreground_labels: Sequence[int], ignore_label: int | None) -> LabelCodec:
        """For targets of shape (B, 1, *spatial) with nnU-Net's consecutive labels.

        Raises:
            GenSegError: the labels are not consecutive.
        """
        if list(foreground_labels) != list(range(1, len(foreground_labels) + 1)):
            raise GenSegError(
                f"nnU-Net's labels must be consecutive from 1 on, found {list(map(int, foreground_labels))}; correct "
                "dataset.json and labelsTr and run nnUNetv2_plan_and_preprocess again"
            )
        ignored = [] if ignore_label is None else [0]
        return cls(len(foreground_labels), ignore_label is not None, labels=(0, *foreground_labels, *ignored))

    @classmethod
    def from_regions(cls, regions: Sequence[int | Sequence[int]], has_ignore: bool) -> LabelCodec:
        """For boolean targets of shape (B, R[+1], *spatial), the ignore label's channel last.

        Raises:
            GenSegError: a region holds the background.
        """
        members = [{region} if isinstance(region, int) else set(region) for region in regions]
        if any(0 in region for region in members):
            raise GenSegError(
                f"a region must not hold label 0, the background, found {[sorted(region) for region in members]}; correct "
                "dataset.json and run nnUNetv2_plan_and_preprocess again"
            )
        labels = sorted(set().union(*members), reverse=True)
        label_of = {tuple(label in region for region in members): label for label in labels}
        patterns = sorted(label_of, reverse=True)
        rows = [(False,) * len(members), *patterns]
        representatives = [0, *(label_of[pattern] for pattern in patterns), *([0] if has_ignore else [])]
        if has_ignore:
            rows = [(*row, False) for row in rows] + [(False,) * len(members) + (True,)]
        return cls(len(patterns), has_ignore, torch.tensor(rows, dtype=torch.bool), tuple(representatives))

    def with_ignore(self) -> LabelCodec:
        """The same classes with an ignore label, for a dataset that may have none."""
        if self.has_ignore:
            return self
        regions = self.regions
        if regions is not None:
            regions = nn.functional.pad(regions, (0, 1, 0, 1))
            regions[-1, -1] = True
        return LabelCodec(self.foreground, True, regions, (*self.labels, 0))

    @property
    def classes(self) -> int:
        """Background, foreground classes and, if there is one, the ignore label."""
        return 1 + self.foreground + int(self.has_ignore)

    def is_foreground(self, classes: Tensor) -> Tensor:
        """Where class maps show a class: neither background nor the ignore label; booleans of their shape."""
        return (classes > 0) & (classes <= self.foreground)

    def to_classes(self, target: Tensor) -> Tensor:
        """(B, 1, *spatial) labels or (B, R[+1], *spatial) booleans to (B, *spatial) int64.

        Targets are not checked: `trainers.preflight.require_labels` checks the cases before the training, and nnU-Net's
        augmentation turns its label −1 into background. A set of regions that no label has becomes background.
        """
        if self.regions is None:
            return target[:, 0].long()
        present = target.bool()
        classes = torch.zeros_like(present[:, 0], dtype=torch.long)
        spatial = (1,) * (target.ndim - 2)
        for index, row in enumerate(self._table(target.device)):
            classes.masked_fill_((present == row.view(1, -1, *spatial)).all(dim=1), index)
        return classes

    def to_target(self, classes: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, *spatial) class maps to the target that nnU-Net's loss expects, of `dtype`."""
        if self.regions is None:
            return classes[:, None].to(dtype)
        return self._table(classes.device)[classes].movedim(-1, 1).to(dtype)

    def _table(self, device: torch.device) -> Tensor:
        assert self.regions is not None
        if device not in self._tables:
            self._tables[device] = self.regions.to(device)
        return self._tables[device]
