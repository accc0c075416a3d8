"""Ray: a cluster that is there already, or else this machine."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.sweep.engines import ENGINES
from nnunetv2_genseg.sweep.engines.base import Resources, installed
from nnunetv2_genseg.sweep.task import Task, perform


@ENGINES.register("ray")
class RayEngine:
    """A remote task of Ray for each attempt, with one CPU and, where it needs one, one GPU.

    Ray notices a worker or node that dies. It is not asked to try again (`max_retries=0`): attempts are counted for all engines
    in one place.

    Args:
        resources: whether GPUs are needed.
    """

    def __init__(self, resources: Resources) -> None:
        self._ray = installed("ray", "ray")
        self._owner = not self._ray.is_initialized()
        if self._owner:
            try:
                self._ray.init(log_to_driver=False, configure_logging=False)  # at RAY_ADDRESS, if that is set
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise GenSegError(
                    f"engine ray: {error}; start Ray on the first machine (ray start --head), or correct or unset RAY_ADDRESS"
                ) from None
        self._perform = self._ray.remote(max_retries=0, num_cpus=1, num_gpus=int(resources.gpu))(perform)
        self._begun: list[Any] = []

    def submit(self, task: Task, log: Path) -> Future[int]:
        """See `Engine`."""
        reference = self._perform.options(name=task.name).remote(task, log)
        self._begun.append(reference)
        future: Future[int] = reference.future()
        return future

    def close(self) -> None:
        """See `Engine`."""
        for reference in self._begun:
            self._ray.cancel(reference, force=True)
        if self._owner:
            self._ray.shutdown()
