"""Figures on the features of whole sets of images: distances of distributions, and diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.quality.features import SMALLEST_DEVIATION
from nnunetv2_genseg.quality.figures import estimate, figure
from nnunetv2_genseg.quality.frechet_distance import frechet_distance, is_available
from nnunetv2_genseg.quality.halves import Division, beside_real
from nnunetv2_genseg.quality.kernel_distance import squared_discrepancy

MOST = 2000
"""Patches of one sample, at most: a kernel has a value for every two of them."""

Features = Mapping[str, Tensor]
"""(patches, channels) of every image, by its name; the numbers of patches may differ."""


def distribution_figures(real: Features, synthetic: Features, divided: Sequence[Division]) -> dict[str, Any]:
    """KID and FID of pairs and real cases, beside those of real cases and each other (see `quality.halves`).

    Features are centred and scaled by the sample that is compared with: its mean, and one deviation for all channels. A deviation
    for each channel would be that of few patches, and would differ from that of any other sample.

    Args:
        real: of every real case.
        synthetic: of every pair.
        divided: halves of the real cases.

    Returns:
        `channels` of a feature vector, `patches` of the smallest and of the largest sample, `kid` and `fid`; `fid` is None if
        torchmetrics is not installed.
    """
    sizes: list[int] = []

    def kernel_distance(one: list[Tensor], other: list[Tensor]) -> float:
        first, second = _relative(one, other)
        sizes.extend((len(first), len(second)))
        return squared_discrepancy(first, second)

    def normal_distance(one: list[Tensor], other: list[Tensor]) -> float:
        return frechet_distance(*_relative(one, other))

    kid = beside_real(kernel_distance, real, synthetic, divided)
    fid = beside_real(normal_distance, real, synthetic, divided) if is_available() else None
    channels = next(iter(real.values())).shape[1]
    return {"channels": channels, "patches": [min(sizes, default=0), max(sizes, default=0)], "kid": kid, "fid": fid}


def diversity_figures(
    real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor], sources: Mapping[str, str], divided: Sequence[Division]
) -> dict[str, Any]:
    """How much images differ from each other: mean Euclidean distances of their feature vectors.

    Args:
        real: (channels,) of every real case.
        synthetic: of every pair.
        sources: for every pair the case that it was made from.
        divided: halves of the real cases.

    Returns:
        `real`: of two real cases. `synthetic`: of two pairs that were made from different cases, one pair of each case. Both are
        estimates over the halves. `same_source`: of two pairs that were made from the same case; None if each case has one pair.
    """
    parts = [part for division in divided for part in zip(division.cases, division.pairs, strict=True)]
    of_real, of_pairs = (
        [spread(torch.stack([vectors[name] for name in part[which]])) for part in parts]
        for which, vectors in enumerate((real, synthetic))
    )
    made: dict[str, list[Tensor]] = {}
    for pair, case in sources.items():
        made.setdefault(case, []).append(synthetic[pair])
    alike = [spread(torch.stack(vectors[:MOST])) for vectors in made.values() if len(vectors) > 1]
    same = figure(sum(alike) / len(alike)) if alike else None
    return {"real": estimate(of_real), "synthetic": estimate(of_pairs), "same_source": same}


def spread(features: Tensor) -> float:
    """Mean Euclidean distance of two different rows of (n, channels); 0 if all are the same, NaN if there is one row only."""
    return float(torch.pdist(features).mean())


def _relative(one: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Two samples, centred and scaled by the second."""
    first, second = _joined(one).double(), _joined(reference).double()
    centre = second.mean(dim=0)
    scale = (second - centre).square().mean().sqrt() + SMALLEST_DEVIATION
    return (first - centre) / scale, (second - centre) / scale


def _joined(images: Sequence[Tensor]) -> Tensor:
    """All patches of images, or 2,000 of them, evenly spread."""
    patches = torch.cat(list(images))
    if len(patches) <= MOST:
        return patches
    return patches[torch.linspace(0, len(patches) - 1, MOST).round().long()]
