"""Single figures of many values, as they are written: mean, spread and count; a figure that is not determined is None."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

Figures = dict[str, float | int | None]
DIGITS = 6
"""Significant digits of a figure."""


def figure(value: float) -> float | None:
    """A value with six significant digits; None, which JSON knows, for one that is not finite."""
    return float(f"{float(value):.{DIGITS}g}") if math.isfinite(value) else None


def summary(values: Iterable[float]) -> Figures:
    """Mean, least value, quartiles, largest value and count of the finite values; None for each figure if there are none."""
    finite = np.asarray([value for value in values if math.isfinite(value)], np.float64)
    least, low, median, high, most = np.quantile(finite, (0, 0.25, 0.5, 0.75, 1)) if len(finite) else [math.nan] * 5
    mean = finite.mean() if len(finite) else math.nan
    found = {"mean": mean, "least": least, "lower_quartile": low, "median": median, "upper_quartile": high, "largest": most}
    return {name: figure(value) for name, value in found.items()} | {"count": len(finite)}


def estimate(values: Iterable[float]) -> Figures:
    """Mean, standard deviation and count of a figure that was measured several times; None if one of them is not finite."""
    measured = np.asarray(list(values), np.float64)
    if not len(measured):
        return {"mean": None, "deviation": None, "count": 0}
    return {"mean": figure(measured.mean()), "deviation": figure(measured.std()), "count": len(measured)}
