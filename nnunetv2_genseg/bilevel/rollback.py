"""Returns the generator to its last finite state when its numbers are NaN or infinite, a limited number of times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

LIMIT = 5
"""Rollbacks that are allowed before a whole epoch without a fault."""


class Rollback:
    """Keeps the last finite state of something that learns, in main memory.

    Args:
        state: gives its state, of tensors, numbers, strings, lists and dictionaries.
        load: the inverse.
    """

    def __init__(self, state: Callable[[], dict[str, Any]], load: Callable[[dict[str, Any]], None]) -> None:
        self._state = state
        self._load = load
        self._clean = True
        self.keep()

    def keep(self) -> None:
        """Takes the present state as finite.

        Raises:
            FloatingPointError: it holds NaN or infinity.
        """
        self._good = _on_cpu(self._finite_state())
        self.faults = 0
        """Faults since the last finite state was taken."""

    def end_epoch(self) -> None:
        """Takes the present state as finite if there was no rollback in the epoch.

        Raises:
            FloatingPointError: it holds NaN or infinity.
        """
        clean, self._clean = self._clean, True
        if clean:
            self.keep()
        else:
            self._finite_state()

    def state_dict(self) -> dict[str, Any]:
        """Faults since the last finite state was taken, and that state if there are any: else it is the present one."""
        return {"faults": self.faults, "clean": self._clean, "good": self._good if self.faults else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, after the present state was loaded."""
        self.keep()
        self._clean = state["clean"]
        if state["faults"]:
            self._good, self.faults = _on_cpu(state["good"]), state["faults"]

    def _finite_state(self) -> dict[str, Any]:
        state = self._state()
        finite = [torch.isfinite(tensor).all() for tensor in _tensors(state)]
        if finite and not all(flag.item() for flag in finite):
            raise FloatingPointError("the generator's state holds NaN or infinity")
        return state

    def undo(self, cause: str) -> None:
        """Returns to the last finite state.

        Raises:
            FloatingPointError: this happened too often.
        """
        self.faults += 1
        self._clean = False
        if self.faults > LIMIT:
            raise FloatingPointError(
                f"{cause}; the generator returned to its last finite state {LIMIT} times, and it happened again. Lower "
                "generator.learning_rate or feedback.learning_rate, or look for NaN in the images"
            )
        self._load(copy.deepcopy(self._good))


def _on_cpu(state: Any) -> Any:
    """A copy of a state, all tensors in main memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_cpu(value) for value in state)
    return copy.deepcopy(state)


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value)
