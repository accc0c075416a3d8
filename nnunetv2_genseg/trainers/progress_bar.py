"""A progress bar on a terminal. Where there is no terminal, or it is closed or gone, there is no bar and no error."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Terminal:
    """A stream that takes no more text after its first error.

    tqdm must not see the error: it would keep its lock, for which its own thread waits when the program ends.

    Args:
        stream: what is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, if the stream is still there; returns how many characters."""
        if not self._gone:
            try:
                return self._stream.write(text)
            except (OSError, ValueError):
                self._gone = True
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, if it is still there."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._gone = True


class ProgressBar:
    """A bar that disappears when it is closed.

    Args:
        total: steps.
        description: beside the bar.
    """

    def __init__(self, total: int, description: str) -> None:
        self._bar: tqdm[Any] | None = None
        if sys.stderr is not None and not sys.stderr.closed:
            self._bar = tqdm(total=total, desc=description, disable=None, leave=False, file=Terminal(sys.stderr))

    def step(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
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
