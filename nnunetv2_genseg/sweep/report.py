"""What a run tells: one live table in a terminal, else a line a change, and a JSON file."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nnunetv2_genseg.files.atomic import write_text_atomically
from nnunetv2_genseg.sweep.running import Record, State

COLOURS = {State.RUNNING: "cyan", State.DONE: "green", State.FAILED: "bold red", State.LEFT_OUT: "red"}
FIRST = (State.FAILED, State.LEFT_OUT, State.RUNNING, State.QUEUED, State.WAITING, State.DONE)
"""What a table that is longer than the terminal shows first."""


class Report:
    """Shows the records of a run and writes them down.

    Args:
        path: the JSON file.
        about: further entries of it.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.about = about
        self.records: Sequence[Record] = ()
        self._console = Console()
        self._live: Live | None = None
        self._told: dict[str, tuple[State, int]] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside the block there is a table, in a terminal; the file is written when the block begins and when it ends.

        Raises:
            GenSegFileError: the file cannot be written.
        """
        self.save()
        try:
            if self._console.is_terminal:
                with Live(console=self._console, refresh_per_second=2) as self._live:
                    yield
            else:
                yield
        finally:
            self.save()

    def tell(self, records: Sequence[Record]) -> None:
        """Takes the records as they are now."""
        self.records = records
        if self._live is not None:
            self._live.update(self._table())
            return
        for record in records:
            now = (record.state, record.attempts)
            if self._told.get(record.task.name, (State.WAITING, 0)) != now:
                self._told[record.task.name] = now
                print(f"{record.task.name}: {_told(record)}", flush=True)

    def save(self) -> None:
        """Writes the file."""
        counts = Counter(record.state.value for record in self.records)
        content = {**self.about, "states": dict(counts), "tasks": [_entry(record) for record in self.records]}
        write_text_atomically(json.dumps(content, indent=1) + "\n", self.path)

    def _table(self) -> Table:
        counts = Counter(record.state for record in self.records)
        caption = ", ".join(f"{counts[state]} {state.value}" for state in FIRST if counts[state])
        table = Table("task", "state", "attempts", "time", "", caption=caption, caption_justify="left")
        for record in sorted(self.records, key=lambda record: FIRST.index(record.state)):
            state = Text(record.state.value, style=COLOURS.get(record.state, ""))
            spent = f"{record.spent:.0f} s" if record.spent else ""
            table.add_row(record.task.name, state, str(record.attempts), spent, Text(record.fault if record.attempts else ""))
        return table


def _told(record: Record) -> str:
    if record.state is State.DONE and not record.attempts:
        return "done before"
    again = f", attempt {record.attempts}" if record.attempts > 1 else ""
    if record.fault and record.state is State.FAILED:
        return f"{record.state.value}{again}: {record.fault} (log: {record.log})"
    if record.fault and record.state is State.QUEUED:
        return f"{record.state.value}{again}, after {record.fault}"
    return f"{record.state.value}{again}"


def _entry(record: Record) -> dict[str, Any]:
    return {
        "name": record.task.name,
        "state": record.state.value,
        "attempts": record.attempts,
        "seconds": round(record.seconds, 2),
        "command": shlex.join(record.task.command),
        "environment": {name: value for name, value in record.task.environment.items() if name == "nnUNet_results"},
        "log": None if record.log is None else str(record.log),
        "fault": record.fault,
    }
