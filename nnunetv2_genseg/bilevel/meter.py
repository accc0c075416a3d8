"""Measured values between two reports. Tensors stay on the device until then, so that nothing waits for it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor


class Meter:
    """Means of values by name."""

    def __init__(self) -> None:
        self._values: dict[str, list[float | Tensor]] = defaultdict(list)

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        """Records values; tensors are 0-d, without graph."""
        for name, value in values.items():
            self._values[name].append(value)

    def means(self) -> dict[str, float]:
        """Mean of every value since the last call, by name; empties the record."""
        means = {}
        for name, values in self._values.items():
            tensors = [value for value in values if isinstance(value, Tensor)]
            numbers = [value for value in values if not isinstance(value, Tensor)]
            total = math.fsum(numbers)
            if tensors:
                total += float(torch.stack(tensors).double().sum())
            means[name] = total / len(values)
        self.clear()
        return means

    def clear(self) -> None:
        """Empties the record."""
        self._values.clear()
