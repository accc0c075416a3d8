"""This machine: a pool of threads, each of which waits for one command."""

from __future__ import annotations

import os
from pathlib import Path
from queue import SimpleQueue

from nnunetv2_genseg.sweep.engines import ENGINES
from nnunetv2_genseg.sweep.engines.base import PoolEngine, Resources
from nnunetv2_genseg.sweep.task import Task, end_all, perform

VISIBLE = "CUDA_VISIBLE_DEVICES"


@ENGINES.register("local")
class LocalEngine(PoolEngine):
    """Commands on this machine. With GPUs the places of the pool are divided among those that are visible.

    Args:
        resources: the size of the pool, and whether GPUs are needed.
    """

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources.jobs)
        self._places: SimpleQueue[dict[str, str]] = SimpleQueue()
        devices = _devices() if resources.gpu else []
        for k in range(resources.jobs):
            self._places.put({VISIBLE: devices[k % len(devices)]} if devices else {})

    def _perform(self, task: Task, log: Path) -> int:
        place = self._places.get()
        try:
            return perform(task, log, place)
        finally:
            self._places.put(place)

    def _end(self) -> None:
        end_all()


def _devices() -> list[str]:
    """Names of the GPUs that this process may use."""
    import torch

    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named or [str(k) for k in range(torch.cuda.device_count())]
