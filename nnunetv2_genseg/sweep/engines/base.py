"""What runs tasks: one Protocol for a pool on this machine, Ray and SLURM."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.sweep.task import Task


@dataclass(frozen=True)
class Resources:
    """What an engine is asked for."""

    jobs: int
    """Tasks at once."""
    logs: Path
    """An existing folder on the shared file system."""
    gpu: bool = False
    """Whether each task needs a GPU of its own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The engine's own."""


class RefusedError(GenSegError):
    """An engine does not take the tasks, which are alike in what they ask of it, and says why."""


class Engine(Protocol):
    """Runs `task.perform`, each task at most once: a further attempt is a further `submit`."""

    def submit(self, task: Task, log: Path) -> Future[int]:
        """Begins an attempt as soon as there is room.

        Returns:
            The exit status to come. `RefusedError` instead of it says that the engine takes no such task, another exception that
            the worker was lost.
        """
        ...

    def close(self) -> None:
        """Ends what still runs."""
        ...


class PoolEngine(ABC):
    """An engine of threads, each of which waits for one attempt.

    Args:
        jobs: attempts at once.
    """

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._begun: list[Future[int]] = []

    def submit(self, task: Task, log: Path) -> Future[int]:
        """See `Engine`."""
        future = self._pool.submit(self._perform, task, log)
        self._begun.append(future)
        return future

    def close(self) -> None:
        """See `Engine`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in self._begun):  # a thread may be about to begin its attempt
            self._end()
            time.sleep(0.1)

    @abstractmethod
    def _perform(self, task: Task, log: Path) -> int:
        """One attempt, to its end; as `task.perform`."""

    @abstractmethod
    def _end(self) -> None:
        """Ends all attempts that run."""


class EngineFactory(Protocol):
    """Builds an engine."""

    def __call__(self, resources: Resources) -> Engine:
        """An engine that is ready.

        Raises:
            GenSegError: it is not installed, or cannot be reached.
        """
        ...


def installed(package: str, extra: str) -> Any:
    """The package that an engine needs.

    Raises:
        GenSegError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise GenSegError(
            f"engine {extra} needs the package {package}, which does not import ({error}); run: "
            f'pip install "nnunetv2-genseg[{extra}]", or choose engine local'
        ) from None
