"""Which training cases of a fold are held out for the feedback."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.files.atomic import write_text_atomically

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

    def write(self, folder: Path, seed: int, rotations: Sequence[Sequence[str]]) -> None:
        """Records the parts in `genseg_split.json`, with more than one rotation the held-out cases of each.

        Args:
            folder: an existing folder.
            seed: as in `hold_out`.
            rotations: the cases that are held out in each.
        """
        cases = len(self.training) + len(self.held_out)
        content: dict[str, Any] = {"held_out": self.held_out, "training": self.training, "seed": seed, "cases": cases}
        if len(rotations) > 1:
            content["rotations"] = rotations
        write_text_atomically(json.dumps(content, indent=2) + "\n", folder / FILE_NAME)


def hold_out(
    cases: Collection[str],
    chosen: float | Sequence[str],
    seed: int,
    rotation: int = 0,
    with_foreground: Collection[str] | None = None,
) -> HeldOut:
    """Holds cases out: those that are named, or a fraction of all, at least one, drawn from the sorted names.

    Args:
        cases: names of the fold's training cases; a name that is there twice counts once.
        chosen: names of cases, or a fraction in (0, 0.5].
        seed: of the draw.
        rotation: number of the draw. Each takes the next cases of the drawn order, from the start again after the last.
        with_foreground: names of the cases that show a foreground class; None: all. Where two or more do, a rotation without
            any takes the next one of them in place of its last case.

    Raises:
        GenSegError: fewer than two cases would remain to train on, or a name is none of the fold's training cases.
    """
    ordered = sorted({str(case) for case in cases})
    if isinstance(chosen, float | int):
        shown = set(ordered if with_foreground is None else with_foreground)
        held_out = _drawn(ordered, chosen, seed, rotation, shown)
    else:
        held_out = _named(ordered, chosen)
    return HeldOut([case for case in ordered if case not in held_out], [case for case in ordered if case in held_out])


def _drawn(cases: list[str], fraction: float, seed: int, rotation: int, with_foreground: set[str]) -> set[str]:
    if len(cases) <= FEWEST_TRAINING:
        raise GenSegError(
            f"this fold has {len(cases)} training case{'s' * (len(cases) != 1)}, but feedback holds cases out and needs at "
            f"least {FEWEST_TRAINING + 1}. Train with more cases, or without feedback: {WITHOUT_FEEDBACK}"
        )
    count = min(max(1, round(fraction * len(cases))), len(cases) - FEWEST_TRAINING)
    drawn = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
    following = [drawn[(rotation * count + i) % len(cases)] for i in range(len(cases))]
    shown = [case for case in following if case in with_foreground]
    if len(shown) > 1 and not with_foreground.intersection(following[:count]):
        return {*following[: count - 1], shown[0]}
    return set(following[:count])


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
