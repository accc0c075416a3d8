"""Intensities of the classes: whether they are distributed in synthetic images as in real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import wasserstein_distance

from nnunetv2_genseg.quality.figures import Figures, figure
from nnunetv2_genseg.quality.halves import Division, beside_real

Array = npt.NDArray[Any]
MOST = 1000
"""Voxels of a class that are taken from one image, so that large structures do not outweigh others."""


def sampled(channel: Array, mask: Array, rng: np.random.Generator) -> Array:
    """(n,) float32 intensities of at most 1,000 voxels of a structure, drawn without replacement.

    Args:
        channel: intensities of an image, of any shape.
        mask: booleans of the same shape.
        rng: draws the voxels.
    """
    inside = channel[mask]
    return (inside if len(inside) <= MOST else rng.choice(inside, MOST, replace=False)).astype(np.float32)


def intensity_figures(
    real: Mapping[str, Array], synthetic: Mapping[str, Array], divided: Sequence[Division]
) -> dict[str, Figures]:
    """What is known of the intensities of one class in one channel.

    Args:
        real: (n,) intensities of the class in every real case, by name; n may be 0.
        synthetic: those of every pair.
        divided: halves of the real cases.

    Returns:
        `real` and `synthetic`: mean, standard deviation and number of voxels, in the unit of the image. `wasserstein_synthetic`,
        the 1-Wasserstein distance of pairs from real cases in the same unit, and `wasserstein_real`, that of real cases from each
        other (see `quality.halves`); None if a half of the cases lacks the class.
    """
    distances = beside_real(_distance, real, synthetic, divided)
    of_images = {"real": _of(real), "synthetic": _of(synthetic)}
    return of_images | {f"wasserstein_{name}": found for name, found in distances.items()}


def _of(images: Mapping[str, Array]) -> Figures:
    voxels = np.concatenate([np.zeros(0, np.float32), *images.values()]).astype(np.float64)
    mean, deviation = (voxels.mean(), voxels.std()) if len(voxels) else (np.nan, np.nan)
    return {"mean": figure(mean), "deviation": figure(deviation), "count": len(voxels)}


def _distance(one: list[Array], other: list[Array]) -> float:
    first, second = np.concatenate(one), np.concatenate(other)
    return float(wasserstein_distance(first, second)) if len(first) and len(second) else float("nan")
