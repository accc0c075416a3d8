"""The labels of a dataset's masks as classes, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.synthesis.labels import LabelCodec


@dataclass(frozen=True)
class LabelTable:
    """Which class a label belongs to. Labels of the same regions belong to one class, and come back as one of them."""

    class_of: dict[int, int]
    """The class of every label that a mask may hold, the ignore label included."""
    label_of: tuple[int, ...]
    """A label of every class."""
    has_ignore: bool
    """Whether the last class is the ignore label's."""

    @property
    def codec(self) -> LabelCodec:
        """The classes."""
        return LabelCodec(len(self.label_of) - 1 - int(self.has_ignore), self.has_ignore, labels=self.label_of)

    def to_classes(self, labels: Tensor) -> Tensor:
        """Class maps, int64, of label maps of whole numbers.

        Raises:
            GenSegError: a label is not declared.
        """
        known = torch.tensor(sorted(self.class_of), device=labels.device)
        place = torch.searchsorted(known, labels.long().contiguous()).clamp(max=len(known) - 1)
        if not bool((known[place] == labels).all()):
            undeclared = sorted(set(labels.flatten().tolist()) - self.class_of.keys())[:10]
            raise GenSegError(f"the label map holds {undeclared}, allowed are {sorted(self.class_of)}; map or correct the labels")
        return torch.tensor([self.class_of[label] for label in sorted(self.class_of)], device=labels.device)[place]

    def to_labels(self, classes: Tensor) -> Tensor:
        """Label maps, int64, of class maps."""
        return torch.tensor(self.label_of, device=classes.device)[classes]
