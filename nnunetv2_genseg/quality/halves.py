"""A yardstick for distances of synthetic pairs from real cases: the distance of one half of the real cases from the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nnunetv2_genseg.quality.figures import Figures, estimate

T = TypeVar("T")
FEWEST = 4
"""Real cases that are needed: a half of one case says nothing."""


@dataclass(frozen=True)
class Division:
    """Two halves of the real cases, equally many, and for each case a pair that was made from it."""

    cases: tuple[list[str], list[str]]
    """Names of the cases in each half."""
    pairs: tuple[list[str], list[str]]
    """Names of the pairs that were made from each half, in the order of its cases."""


def divisions(sources: Mapping[str, str], count: int, rng: np.random.Generator) -> list[Division]:
    """Random divisions.

    Args:
        sources: for every pair the real case that it was made from. Cases without a pair are left out.
        count: divisions.
        rng: draws the halves, and one of the pairs of each case.

    Returns:
        `count` of them; none if fewer than four cases have a pair.
    """
    made: dict[str, list[str]] = {}
    for pair, case in sources.items():
        made.setdefault(case, []).append(pair)
    cases, half = sorted(made), len(made) // 2
    if len(cases) < FEWEST:
        return []
    found = []
    for _ in range(count):
        order = [cases[i] for i in rng.permutation(len(cases))]
        both = order[:half], order[half : 2 * half]
        chosen = [[made[case][rng.integers(len(made[case]))] for case in part] for part in both]
        found.append(Division(both, (chosen[0], chosen[1])))
    return found


def beside_real(
    distance: Callable[[list[T], list[T]], float],
    real: Mapping[str, T],
    synthetic: Mapping[str, T],
    divided: Sequence[Division],
) -> dict[str, Figures]:
    """A distance of pairs from real cases beside the same distance of real cases from each other.

    The pairs that were made from one half of the real cases are compared with the other half. So a pair is never compared with
    the case that it was made from, and both distances are between equally many cases: they have the same bias.

    Args:
        distance: of two samples.
        real: an item for every real case, by name.
        synthetic: an item for every pair, by name.
        divided: halves of the real cases.

    Returns:
        `synthetic` and `real`: mean and standard deviation over the divisions.
    """
    drawn, held = [], []
    for division in divided:
        first, second = ([real[name] for name in part] for part in division.cases)
        of_first, of_second = ([synthetic[name] for name in part] for part in division.pairs)
        drawn.append((distance(of_second, first) + distance(of_first, second)) / 2)
        held.append(distance(second, first))
    return {"synthetic": estimate(drawn), "real": estimate(held)}
