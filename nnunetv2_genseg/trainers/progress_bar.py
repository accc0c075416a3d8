"""A progress bar on a terminal. Where there is no terminal, or it is closed or gone, there is no bar and no error."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class ProgressBar:
    """A bar that disappears when it is closed.

    Args:
        total: steps.
        description: beside the bar.
    """

    def __init__(self, total: int, description: str) -> None:
        self._bar: tqdm[Any] | None = None
        if sys.stderr is not None and not sys.stderr.closed:
            with self._terminal_may_be_gone():
                self._bar = tqdm(total=total, desc=description, disable=None, leave=False)

    def step(self) -> None:
        """One step is done."""
        with self._terminal_may_be_gone():
            if self._bar is not None:
                self._bar.update()

    def close(self) -> None:
        """Removes the bar."""
        with self._terminal_may_be_gone():
            if self._bar is not None:
                self._bar.close()
        self._bar = None

    @contextmanager
    def _terminal_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            if self._bar is not None:
                self._bar.disable = True  # or its destructor would try once more
            self._bar = None


def with_progress(items: Collection[T], description: str) -> Iterator[T]:
    """The items one after another, with a bar."""
    bar = ProgressBar(len(items), description)
    try:
        for item in items:
            yield item
            bar.step()
    finally:
        bar.close()
