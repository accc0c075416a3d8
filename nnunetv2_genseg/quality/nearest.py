"""Memorisation: whether synthetic images are nearer to single real ones than real ones are to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.quality.figures import figure, summary

SHOWN = 10
"""Closest pairs that are named."""


def nearest_figures(
    real: Tensor, cases: Sequence[str], synthetic: Tensor, pairs: Sequence[str], sources: Mapping[str, str]
) -> dict[str, Any]:
    """Distances of synthetic images from real ones, beside those of real ones from each other.

    Args:
        real: (n, channels) a vector for every real case, n at least 2.
        cases: their n names.
        synthetic: (m, channels) a vector for every pair.
        pairs: their m names.
        sources: the real case that each pair was made from; one that is not in `cases` counts as none.

    Returns:
        `real_nearest_other`, `nearest_source` and `nearest_other`: summaries of Euclidean distances. `closer_than_real`: pairs
        that are nearer to a case which is not their source than any two real cases are to each other. `closest_other` and
        `closest_source`: the ten closest pairs, each with its case and distance.
    """
    within = torch.cdist(real.double(), real.double(), compute_mode="donot_use_mm_for_euclid_dist")
    held = within.masked_fill(torch.eye(len(real), dtype=torch.bool), torch.inf).amin(dim=1)
    between = torch.cdist(synthetic.double(), real.double(), compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.tensor([[sources[pair] == case for case in cases] for pair in pairs])
    source = torch.where(own, between, torch.inf).amin(dim=1)
    other, which = torch.where(own, torch.inf, between).min(dim=1)
    return {
        "real_nearest_other": summary(held.tolist()),
        "nearest_source": summary(source.tolist()),
        "nearest_other": summary(other.tolist()),
        "closer_than_real": int((other < held.min()).sum()),
        "closest_other": _closest(other, pairs, [cases[i] for i in which.tolist()]),
        "closest_source": _closest(source, pairs, [sources[pair] for pair in pairs]),
    }


def _closest(distances: Tensor, pairs: Sequence[str], cases: Sequence[str]) -> list[dict[str, Any]]:
    order = [i for i in distances.argsort().tolist() if bool(distances[i].isfinite())]
    return [{"pair": pairs[i], "case": cases[i], "distance": figure(float(distances[i]))} for i in order[:SHOWN]]
