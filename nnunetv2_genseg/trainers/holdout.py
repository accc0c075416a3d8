"""Which training cases of a fold are held aside for the feedback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE_NAME = "genseg_split.json"
SMALLEST_FOLD = 3


@dataclass(frozen=True)
class Carving:
    """The training cases of a fold in two parts, each sorted. The label budget is both together."""

    training: list[str]
    feedback: list[str]

    def write(self, folder: Path, fraction: float, seed: int, turns: int) -> None:
        """Records the parts in `genseg_split.json`, with more than one turn the cases held aside in each."""
        cases = sorted(self.training + self.feedback)
        content: dict[str, Any] = {"feedback": self.feedback, "training": self.training, "seed": seed, "budget": len(cases)}
        if turns > 1:
            content["turns"] = [carve(cases, fraction, seed, turn).feedback for turn in range(turns)]
        (folder / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def carve(cases: Sequence[str], fraction: float, seed: int, turn: int = 0) -> Carving:
    """Holds a fraction of the cases aside, at least one, drawn by a seeded generator from the sorted names.

    Args:
        cases: names of the fold's training cases.
        fraction: in (0, 0.5].
        seed: of the draw.
        turn: the cases of another turn are the next ones in the drawn order, from the start again after the last.

    Raises:
        ValueError: there are fewer than three cases, so that nothing can be held aside.
    """
    ordered = sorted(str(case) for case in cases)
    if len(ordered) < SMALLEST_FOLD:
        raise ValueError(
            f"this fold has {len(ordered)} training case{'s'[: len(ordered) != 1]}, but feedback holds cases aside and "
            f"needs at least {SMALLEST_FOLD}. Train with more cases, or without feedback: -tr GenSegTrainerNoFeedback, or "
            'feedback: {enabled: false} in the file that nnUNet_genseg_config names'
        )
    count = max(1, round(fraction * len(ordered)))
    drawn = np.random.default_rng(seed).permutation(len(ordered)).tolist()
    chosen = {drawn[(turn * count + i) % len(ordered)] for i in range(count)}
    return Carving(
        [case for i, case in enumerate(ordered) if i not in chosen],
        [case for i, case in enumerate(ordered) if i in chosen],
    )
