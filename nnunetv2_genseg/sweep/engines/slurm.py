"""SLURM, by submitit: a job for each attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.errors import ONE_MACHINE
from nnunetv2_genseg.sweep.engines import ENGINES
from nnunetv2_genseg.sweep.engines.base import PoolEngine, Resources, installed
from nnunetv2_genseg.sweep.task import Task, perform

OF_SEVERAL = ("nodes", "tasks_per_node", "gpus_per_node", "slurm_nodes", "slurm_ntasks_per_node", "slurm_gpus_per_node")
"""Options that would give a task more than one process or GPU."""
MINUTES = 24 * 60
"""Time limit of a job, unless `timeout_min` says another. What it ends goes on in the next attempt."""


@ENGINES.register("slurm")
class SlurmEngine(PoolEngine):
    """Jobs of SLURM, `resources.jobs` of them at once, waiting ones included.

    Args:
        resources: its options are those of submitit's AutoExecutor, such as `slurm_partition` and `timeout_min`; `cluster: local`
            makes each job a process of this machine.
    """

    def __init__(self, resources: Resources) -> None:
        submitit = installed("submitit", "slurm")
        options = {"timeout_min": MINUTES, **({"gpus_per_node": 1} if resources.gpu else {}), **resources.options}
        cluster = options.pop("cluster", "slurm")
        several = [name for name in OF_SEVERAL if options.get(name, 1) != 1]
        if several:
            raise GenSegError(f"engine slurm: {several[0]} must be 1, found {options[several[0]]}: {ONE_MACHINE}")
        try:
            self._executor = submitit.AutoExecutor(folder=resources.logs / "slurm", cluster=cluster)
            self._executor.update_parameters(**options)
        except (RuntimeError, ValueError, TypeError, AssertionError, NameError) as error:
            raise GenSegError(
                f"engine slurm: {error}; run this where SLURM's commands are, with options of submitit's AutoExecutor"
            ) from None
        super().__init__(resources.jobs)
        self._jobs: list[Any] = []

    def _perform(self, task: Task, log: Path) -> int:
        job = self._executor.submit(perform, task, log)
        self._jobs.append(job)
        status: int = job.result()  # of a job that has died submitit says so 15 s later: its result may yet appear
        return status

    def _end(self) -> None:
        while self._jobs:
            self._jobs.pop().cancel(check=False)
