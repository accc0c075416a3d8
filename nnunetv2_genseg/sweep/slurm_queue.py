"""Which jobs SLURM still has: one call of `squeue` for all of them."""

from __future__ import annotations

from threading import RLock

from submitit.core.core import InfoWatcher

PERIOD = 30
"""Seconds between two calls at most, once no job was submitted for a minute; before, they are down to 2 s apart."""
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
FORGOTTEN = "FORGOTTEN"
"""State of a job that ended longer ago than SLURM remembers (`MinJobAge`, five minutes by default)."""


class Queue(InfoWatcher):
    """Tells submitit's jobs their states.

    submitit's own watcher asks SLURM's accounting, `sacct`. A cluster without accounting never tells it that a job has ended, and
    others tell it up to ten minutes later. While `squeue` fails, as when the controller is restarted, jobs keep their states.
    """

    def __init__(self) -> None:
        super().__init__(delay_s=PERIOD)
        self._lock = RLock()  # an update asks itself
        self._asked: set[str] = set()

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """State of a job in SLURM's words."""
        return self.get_info(job_id, mode).get("State", "UNKNOWN")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job has ended."""
        return self.get_state(job_id, mode) in (*ENDED, FORGOTTEN)

    def update_if_long_enough(self, mode: str) -> None:
        """One thread asks for all that wait."""
        with self._lock:
            super().update_if_long_enough(mode)

    def _make_command(self) -> list[str] | None:
        self._asked = self._registered - self._finished  # of a job that is submitted from now on the answer may not tell
        return ["squeue", "--me", "--states=all", "--noheader", "--format=%i %T"] if self._asked else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """The states of the jobs that were asked for."""
        text = string if isinstance(string, str) else string.decode()
        listed = dict(line.split() for line in text.splitlines())
        return {job_id: {"State": listed.get(job_id, FORGOTTEN)} for job_id in self._asked}
