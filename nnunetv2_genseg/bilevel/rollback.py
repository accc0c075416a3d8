"""What happens when something of the generator's is NaN or infinite: it is undone, and too many times end the training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

LIMIT = 5
"""So many times it is undone before a whole stretch without a fault has been seen."""


class Recovery:
    """Keeps the last good state of something that learns.

    Args:
        state: gives its state, of tensors, numbers, strings, lists and dictionaries.
        restore: the inverse.
    """

    def __init__(self, state: Callable[[], dict[str, Any]], restore: Callable[[dict[str, Any]], None]) -> None:
        self._state = state
        self._restore = restore
        self._clean = True
        self.keep()

    def keep(self) -> None:
        """Takes the present state as good.

        Raises:
            FloatingPointError: it holds NaN or infinity.
        """
        self._good = copy.deepcopy(self._finite_state())
        self.faults = 0
        """Faults since the last good state was taken."""

    def end_stretch(self) -> None:
        """Takes the present state as good if nothing was undone since this was last called.

        Raises:
            FloatingPointError: it holds NaN or infinity.
        """
        clean, self._clean = self._clean, True
        if clean:
            self.keep()
        else:
            self._finite_state()

    def _finite_state(self) -> dict[str, Any]:
        state = self._state()
        if not all(torch.isfinite(tensor).all() for tensor in _tensors(state)):
            raise FloatingPointError("the generator's state holds NaN or infinity")
        return state

    def undo(self, cause: str) -> None:
        """Goes back to the last good state.

        Raises:
            FloatingPointError: it had to be done too often.
        """
        self.faults += 1
        self._clean = False
        if self.faults > LIMIT:
            raise FloatingPointError(
                f"{cause}; the generator was put back to its last good state {LIMIT} times, and it happened again. Lower "
                "generator.learning_rate or feedback.learning_rate, or look for NaN in the images"
            )
        self._restore(copy.deepcopy(self._good))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value)
