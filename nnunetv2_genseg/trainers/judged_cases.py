"""What one real case, or one pair, is measured by before they are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from torch import Tensor

from nnunetv2_genseg.quality.intensities import sampled
from nnunetv2_genseg.trainers.fold_network import FoldNetwork, small_copy
from nnunetv2_genseg.trainers.planning import channel_names
from nnunetv2_genseg.trainers.raw_cases import Array, RawCases

BACKGROUND, IGNORED = "background", "ignore"
"""Names of nnU-Net's that are no classes."""


@dataclass(frozen=True)
class Judged:
    """What is known of one case or pair."""

    intensities: dict[tuple[str, str], Array]
    """By the names of a channel and a class: (n,) intensities."""
    features: Tensor
    """(patches, channels); no channels if there are no features."""
    pixels: Tensor
    """(voxels,) of its small copy."""
    mask: str
    """SHA-256 of its mask."""
    dice: dict[str, float]
    """Of every class; NaN for one that neither mask holds. Empty if nothing was segmented."""


def classes_of(description: dict[str, Any]) -> dict[str, Any]:
    """Labels, or regions as tuples, by their names in dataset.json, without background; in the order of nnU-Net's figures."""
    named = {name: value for name, value in description["labels"].items() if name not in (BACKGROUND, IGNORED)}
    classes: dict[str, Any] = {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in named.items()}
    if any(isinstance(value, tuple) for value in classes.values()):
        return classes
    return dict(sorted(classes.items(), key=lambda item: item[1]))


class Judge:
    """Looks at one case after another.

    Args:
        network: of the fold.
        own_features: from `feature_function`; None: the network's.
    """

    def __init__(self, network: FoldNetwork, own_features: Callable[[Tensor, int], Tensor] | None = None) -> None:
        self.network = network
        self.has_features = own_features is not None or network.has_features
        self._own_features = own_features
        self._rng = np.random.default_rng(0)
        self.channels = channel_names(network.description)
        self.classes = classes_of(network.description)

    def look(self, cases: RawCases, name: str, segment: bool) -> Judged:
        """Measures a case; `segment`: whether the network segments it, too.

        Raises:
            GenSegError: it cannot be read, or its mask holds undeclared labels.
        """
        raw, segmentation, properties = cases.load(name)
        labels = segmentation[0]
        cases.classes(name, labels)
        data, completed = self.network.prepared(raw, properties)
        return Judged(
            intensities={
                (channel, of): sampled(raw[c], region_or_label_to_mask(labels, value), self._rng)
                for c, channel in enumerate(self.channels)
                for of, value in {BACKGROUND: 0, **self.classes}.items()
            },
            features=self.network.features(data, self._own_features) if self.has_features else torch.zeros(1, 0),
            pixels=small_copy(data),
            mask=hashlib.sha256(np.ascontiguousarray(labels, np.int16).tobytes()).hexdigest(),
            dice=self.dice(labels, self.network.segmented(data, completed)) if segment else {},
        )

    def dice(self, labels: Array, found: Array) -> dict[str, float]:
        """Dice of every class, without the voxels of the ignore label, as nnU-Net's own evaluation computes it."""
        manager = self.network.manager
        ignored = labels == manager.ignore_label if manager.has_ignore_label else None
        values = {}
        for name, value in self.classes.items():
            masks = (region_or_label_to_mask(maps, value) for maps in (labels, found))
            tp, fp, fn, _ = map(int, compute_tp_fp_fn_tn(*masks, ignored))
            values[name] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float("nan")
        return values
