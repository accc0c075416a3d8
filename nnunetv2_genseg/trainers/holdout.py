"""Which training cases of a fold are held out for the feedback."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_genseg.config import GenSegError

FILE_NAME = "genseg_split.json"
"""The training cases, those that are held out, and those of each rotation."""
FEWEST_TRAINING = 2
"""Cases that must remain to train on."""
WITHOUT_FEEDBACK = "-tr GenSegTrainerNoFeedback, or feedback: {enabled: false} in the file that nnUNet_genseg_config names"


@dataclass(frozen=True)
class HeldOut:
    """The training cases of a fold in two parts, each sorted. Both together are the labelled cases of the fold."""

    training: list[str]
    held_out: list[str]

    def write(self, folder: Path, chosen: float | Sequence[str], seed: int, rotations: int) -> None:
        """Records the parts in `genseg_split.json`, with more than one rotation the held-out cases of each.

        Args:
            folder: an existing folder.
            chosen: as in `hold_out`.
            seed: as in `hold_out`.
            rotations: in how many parts of the training other cases are held out.
        """
        cases = sorted(self.training + self.held_out)
        content: dict[str, Any] = {"held_out": self.held_out, "training": self.training, "seed": seed, "cases": len(cases)}
        if rotations > 1:
            content["rotations"] = [hold_out(cases, chosen, seed, rotation).held_out for rotation in range(rotations)]
        (folder / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def hold_out(cases: Sequence[str], chosen: float | Sequence[str], seed: int, rotation: int = 0) -> HeldOut:
    """Holds cases out: those that are named, or a fraction of all, at least one, drawn from the sorted names.

    Args:
        cases: names of the fold's training cases.
        chosen: names of cases, or a fraction in (0, 0.5].
        seed: of the draw.
        rotation: number of the draw. Each takes the next cases of the drawn order, from the start again after the last.

    Raises:
        GenSegError: fewer than two cases would remain to train on, or a name is none of the fold's training cases.
    """
    ordered = sorted(str(case) for case in cases)
    held_out = _drawn(ordered, chosen, seed, rotation) if isinstance(chosen, float | int) else _named(ordered, chosen)
    return HeldOut([case for case in ordered if case not in held_out], [case for case in ordered if case in held_out])


def _drawn(cases: list[str], fraction: float, seed: int, rotation: int) -> set[str]:
    if len(cases) <= FEWEST_TRAINING:
        raise GenSegError(
            f"this fold has {len(cases)} training case{'s' * (len(cases) != 1)}, but feedback holds cases out and needs at "
            f"least {FEWEST_TRAINING + 1}. Train with more cases, or without feedback: {WITHOUT_FEEDBACK}"
        )
    count = min(max(1, round(fraction * len(cases))), len(cases) - FEWEST_TRAINING)
    drawn = np.random.default_rng(seed).permutation(len(cases)).tolist()
    return {cases[drawn[(rotation * count + i) % len(cases)]] for i in range(count)}


def _named(cases: list[str], names: Sequence[str]) -> set[str]:
    unknown = sorted(set(names) - set(cases))
    if unknown:
        near = sorted({match for name in unknown for match in difflib.get_close_matches(name, cases, n=2)})
        hint = f"did you mean {', '.join(near)}?" if near else f"they are {', '.join(cases[:5])}{', ...' * (len(cases) > 5)}"
        raise GenSegError(f"feedback.cases: no training case of this fold is named {', '.join(unknown)}; {hint}")
    remaining = len(cases) - len(set(names))
    if remaining < FEWEST_TRAINING:
        raise GenSegError(
            f"feedback.cases names {len(set(names))} of the fold's {len(cases)} training cases, so that {remaining} remain to "
            f"train on; at least {FEWEST_TRAINING} must. Name fewer, or train without feedback: {WITHOUT_FEEDBACK}"
        )
    return set(names)
