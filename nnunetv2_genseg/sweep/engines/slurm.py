"""SLURM, by submitit: a job for each attempt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.errors import ONE_MACHINE
from nnunetv2_genseg.sweep.engines import ENGINES
from nnunetv2_genseg.sweep.engines.base import PoolEngine, RefusedError, Resources, installed
from nnunetv2_genseg.sweep.task import Task, perform

OF_SEVERAL = ("nodes", "tasks_per_node", "gpus_per_node", "slurm_nodes", "slurm_ntasks_per_node", "slurm_gpus_per_node")
"""Options that would give a task more than one process or GPU."""
DEFAULTS = {"timeout_min": 24 * 60, "slurm_signal_delay_s": 0}
"""Options unless the plan has others. What the time limit ends goes on in the next attempt. SLURM's SIGTERM at the limit lets a
training end in order; submitit's own signal, 90 seconds before, would kill it."""
AGAIN = 30
"""Seconds until a job is submitted again that SLURM did not take."""
FURTHER = "slurm_additional_parameters"
"""submitit's name for options of sbatch that it does not know."""


@ENGINES.register("slurm")
class SlurmEngine(PoolEngine):
    """Jobs of SLURM, `resources.jobs` of them at once, waiting ones included.

    SLURM is not asked to requeue a job (`--no-requeue`): attempts are counted for all engines in one place.

    Args:
        resources: its options are those of submitit's AutoExecutor, such as `slurm_partition` and `timeout_min`; `cluster: local`
            makes each job a process of this machine.
    """

    def __init__(self, resources: Resources) -> None:
        submitit = installed("submitit", "slurm")
        from nnunetv2_genseg.sweep.slurm_queue import Queue

        gpu = resources.gpu and "gpu" not in str(resources.options.get("slurm_gres"))
        options: dict[str, Any] = {**DEFAULTS, **({"gpus_per_node": 1} if gpu else {}), **resources.options}
        cluster = options.pop("cluster", "slurm")
        several = [name for name in OF_SEVERAL if options.get(name, 1) != 1]
        if several:
            raise GenSegError(f"engine slurm: {several[0]} must be 1, found {options[several[0]]}: {ONE_MACHINE}")
        try:
            options[FURTHER] = {"no-requeue": True, **options.get(FURTHER, {})}
            self._executor = submitit.AutoExecutor(folder=resources.logs / "slurm", cluster=cluster)
            self._executor.update_parameters(**options)
        except (RuntimeError, ValueError, TypeError, AssertionError, NameError) as error:
            raise GenSegError(
                f"engine slurm: {error}; run this where SLURM's commands are, with options of submitit's AutoExecutor"
            ) from None
        super().__init__(resources.jobs)
        submitit.SlurmJob.watcher = Queue()
        self._named = "name" in options
        self._submitting, self._closing, self._accepted = Lock(), Event(), False

    def _perform(self, task: Task, log: Path) -> int:
        job = self._submitted(task, log)
        while not job.done():
            if self._closing.wait(1):
                job.cancel(check=False)
                raise CancelledError
        try:
            status: int = job.result()  # if there is none, submitit looks for it another 15 s: a file system may be slow
        except RuntimeError as error:
            raise type(error)(f"job {job.job_id}, last seen as {job.state}; its output: {job.paths.stderr}") from None
        return status

    def _submitted(self, task: Task, log: Path) -> Any:
        """The job of an attempt. Once SLURM has accepted one, it is asked until it accepts: it may be down, or full."""
        while True:
            with self._submitting, _outside_of_jobs():
                if self._closing.is_set():
                    raise CancelledError
                try:
                    if not self._named:
                        self._executor.update_parameters(name=task.name)
                    job = self._executor.submit(perform, task, log)
                    self._accepted = True
                    return job
                except RuntimeError as error:
                    if not self._accepted:
                        self._closing.set()
                        said = "; ".join(str(error).splitlines())
                        raise RefusedError(f"engine slurm: {said}; correct the options of SLURM") from None
            self._closing.wait(AGAIN)

    def _end(self) -> None:
        self._closing.set()


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hides that this process itself runs in a job of SLURM, whose size a new job would take for its own."""
    own = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SLURM_") and name != "SLURM_CONF"}
    try:
        yield
    finally:
        os.environ.update(own)
