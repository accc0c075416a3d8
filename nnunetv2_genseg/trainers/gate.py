"""Judges a pair before it is written: does the fold's network find its mask, and are its intensities those of real cases?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask

from nnunetv2_genseg.trainers.fold_network import FoldNetwork
from nnunetv2_genseg.trainers.judged_cases import BACKGROUND, Judge
from nnunetv2_genseg.trainers.progress_bar import with_progress
from nnunetv2_genseg.trainers.raw_cases import Array, RawCases


@dataclass(frozen=True)
class Scores:
    """What is known of a pair that was drawn."""

    dice: dict[str, float]
    """Of mask and segmentation, for every class that one of them holds."""
    unusual: list[str]
    """`channel: class` whose mean intensity is out of the real range."""
    passed: bool

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Of two pairs of the same case the better one is larger."""
        return self.passed, -len(self.unusual), statistics.fmean(self.dice.values()) if self.dice else 1.0

    def to_json(self) -> dict[str, Any]:
        """For the record of the pair."""
        return {"passed": self.passed, "dice": self.dice, "unusual_intensities": self.unusual}


class Gate:
    """Lets pairs pass whose mean Dice is high enough and whose classes are as bright as in real cases.

    A class is as bright if its mean is not further out of the range of the means of real cases than one standard deviation within
    the class (median of the cases).

    Args:
        network: of the fold.
        least_dice: mean over the classes of a pair.
        redraws: how often a pair that fails is drawn again, at most.
    """

    def __init__(self, network: FoldNetwork, least_dice: float, redraws: int) -> None:
        self.least_dice = least_dice
        self.redraws = redraws
        self._judge = Judge(network)
        self._ranges: dict[tuple[str, str], tuple[float, float]] = {}
        self.again = 0
        """Pairs that were drawn more than once."""
        self.failed = 0
        """Of these, pairs of which no draw passed."""

    def origin(self) -> dict[str, Any]:
        """What the record says of it."""
        return {"least_dice": self.least_dice, "redraws": self.redraws, "checkpoint": self._judge.network.checkpoint.name}

    def look_at_cases(self, cases: RawCases, names: Sequence[str]) -> None:
        """Measures the real range of intensities."""
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for name in with_progress(list(names), "measuring intensities"):
            raw, segmentation, _ = cases.load(name)
            for key, values in self._by_class(raw, segmentation[0]).items():
                found.setdefault(key, []).append((float(values.mean()), float(values.std())))
        for key, measured in found.items():
            means, spread = [mean for mean, _ in measured], statistics.median(deviation for _, deviation in measured)
            self._ranges[key] = min(means) - spread, max(means) + spread

    def scores(self, image: Array, labels: Array, properties: dict[str, Any]) -> Scores:
        """Judges a pair.

        Args:
            image: (C, slices, height, width) raw intensities.
            labels: (slices, height, width).
            properties: the reader's, of its geometry.
        """
        network = self._judge.network
        found = self._judge.dice(labels, network.segmented(*network.prepared(image, properties)))
        dice = {name: value for name, value in found.items() if not np.isnan(value)}
        unusual = []
        for key, values in self._by_class(image, labels).items():
            low, high = self._ranges.get(key, (-np.inf, np.inf))
            if not low <= values.mean() <= high:
                unusual.append(": ".join(key))
        enough = not dice or statistics.fmean(dice.values()) >= self.least_dice
        return Scores(dice, unusual, enough and not unusual)

    def _by_class(self, raw: Array, labels: Array) -> dict[tuple[str, str], Array]:
        """(n,) intensities by the names of a channel and a class that the mask holds."""
        masks = {name: region_or_label_to_mask(labels, of) for name, of in {BACKGROUND: 0, **self._judge.classes}.items()}
        return {
            (channel, name): raw[c][mask].astype(np.float64)
            for c, channel in enumerate(self._judge.channels)
            for name, mask in masks.items()
            if mask.any()
        }
