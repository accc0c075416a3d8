"""Runs tasks on an engine: each after what it needs, each until it is done or its attempts are used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from enum import Enum
from graphlib import TopologicalSorter
from pathlib import Path

from nnunetv2_genseg.sweep.engines import Engine, RefusedError
from nnunetv2_genseg.sweep.task import Task

TICK = 0.5
"""Seconds between two looks at which tasks run; an end is noticed at once."""
USERS = 2
"""The exit status of a mistake that only the user can correct: no second attempt is made."""


class State(str, Enum):
    """Where a task stands."""

    WAITING = "waiting"
    """For what it needs, or for its turn."""
    QUEUED = "queued"
    """The engine has it."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    LEFT_OUT = "left out"
    """What it needs has failed."""


@dataclass
class Record:
    """What became of a task."""

    task: Task
    state: State = State.WAITING
    attempts: int = 0
    """Begun in this run; 0: it was done before."""
    seconds: float = 0.0
    """Of the attempts that have ended."""
    log: Path | None = None
    """Of the latest attempt."""
    fault: str = ""
    """What ended the latest attempt that did not succeed."""
    _since: float = 0.0

    def begin(self, log: Path) -> None:
        """A new attempt is submitted."""
        self.state, self.log, self._since = State.QUEUED, log, time.monotonic()
        self.attempts += 1

    def look(self) -> None:
        """Notices that an attempt, whose log is the first that it writes, runs."""
        if self.state is State.QUEUED and self.log is not None and self.log.is_file():
            self.state, self._since = State.RUNNING, time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds of all attempts until now."""
        return self.seconds + (time.monotonic() - self._since if self.state is State.RUNNING else 0.0)

    def end(self, future: Future[int], attempts: int) -> None:
        """Takes the outcome of an attempt, of which there may be `attempts`.

        Raises:
            RefusedError: the engine takes no such task.
        """
        self.seconds += time.monotonic() - self._since
        error = future.exception()
        if isinstance(error, RefusedError):
            raise error
        status = future.result() if error is None else None
        if self.task.is_done() or (status == 0 and not self.task.products):
            self.state = State.DONE
            return
        self.fault = self._told(status, error)
        self.state = State.FAILED if status == USERS or self.attempts >= attempts else State.WAITING

    def _told(self, status: int | None, error: BaseException | None) -> str:
        if error is not None:
            return f"the worker was lost ({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''})"
        if status == 0:
            return f"it ended without {', '.join(str(path) for path in self.task.products if not path.is_file())}"
        ended = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        written = self.log is not None and self.log.is_file()  # a file system that is shared may show it later
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log and written else []
        last = next((line.strip() for line in reversed(lines[1:]) if line.strip()), "")
        return f"{ended}{': ' * bool(last)}{last}"


def run(
    tasks: Sequence[Task], engine: Engine, jobs: int, attempts: int, logs: Path, tell: Callable[[Sequence[Record]], None]
) -> list[Record]:
    """Runs tasks that are not done yet.

    Args:
        tasks: with all that they need among them.
        engine: runs them.
        jobs: tasks that the engine is given at once.
        attempts: at a task, at most.
        logs: a folder for a log an attempt.
        tell: is shown the records whenever something may have changed.

    Returns:
        A record a task, in an order in which each follows what it needs.

    Raises:
        RefusedError: the engine takes no such tasks.
    """
    known = {task.name: task for task in tasks}
    order = TopologicalSorter({task.name: task.needs for task in tasks}).static_order()
    records = {name: Record(known[name]) for name in order}
    for record in records.values():
        record.state = State.DONE if record.task.is_done() else State.WAITING
    pending: dict[Future[int], Record] = {}
    while True:
        for record in _ready(records):
            if len(pending) < jobs:
                log = _free(logs, record.task.name)
                record.begin(log)
                pending[engine.submit(record.task, log)] = record
        tell(list(records.values()))
        if not pending:
            return list(records.values())
        ended, _ = wait(pending, timeout=TICK, return_when=FIRST_COMPLETED)
        for future in ended:
            pending.pop(future).end(future, attempts)
        for record in pending.values():
            record.look()


def _ready(records: dict[str, Record]) -> Iterable[Record]:
    """Tasks that can be begun. Those that never can are left out."""
    for record in records.values():
        if record.state is State.WAITING:
            needed = {records[name].state for name in record.task.needs}
            if needed & {State.FAILED, State.LEFT_OUT}:
                record.state = State.LEFT_OUT
            elif needed <= {State.DONE}:
                yield record


def _free(folder: Path, name: str) -> Path:
    """A log that is not there yet."""
    stem, k = name.replace(" ", "_"), 1
    while (folder / f"{stem}-{k}.txt").exists():
        k += 1
    return folder / f"{stem}-{k}.txt"
