"""A command that is to be done once: how it is seen to be done, and how one attempt at it runs, on whichever machine."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_genseg.files.lock import alone_in

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
RESUME = "--c"
DAMAGED = ".damaged"
"""Ending of the name of a checkpoint that was set aside."""
_running: set[subprocess.Popen[bytes]] = set()
"""What this process has started and waits for."""


@dataclass(frozen=True)
class Task:
    """A command, on a file system that all machines share."""

    name: str
    """In the table, and of its logs; no two tasks of a run have the same."""
    command: tuple[str, ...]
    """A program, by its path, and its arguments."""
    folder: Path
    """Where it runs."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those of the machine that it runs on."""
    products: tuple[Path, ...] = ()
    """Files that are all there once it is done; with none it is done when its exit status is 0."""
    checkpoints: tuple[Path, ...] = ()
    """If one of these files, which `torch.save` writes, is there and whole, the command goes on from it by `--c`."""
    needs: tuple[str, ...] = ()
    """Names of the tasks that have to be done before."""

    def is_done(self) -> bool:
        """Whether it has products and all of them are there."""
        return bool(self.products) and all(path.is_file() for path in self.products)


def perform(task: Task, log: Path, further: Mapping[str, str] | None = None) -> int:
    """One attempt at a task: runs its command to the end, and ends it when this process ends.

    It first waits for the end of an attempt that an earlier sweep has begun and that still runs, on whichever machine.

    Args:
        task: what is to be done.
        log: a new file, for the command and what it prints.
        further: environment variables beside the task's.

    Returns:
        The command's exit status; -N if signal N ended it.

    Raises:
        OSError: the log cannot be written, or the program is not there.
    """
    place = log.parent / "running" / task.name.replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    with alone_in(place, wait=True):
        return 0 if task.is_done() else _run(task, log, further or {})


def _run(task: Task, log: Path, further: Mapping[str, str]) -> int:
    damaged = list(_set_aside(task.checkpoints))
    resumed = any(path.is_file() for path in task.checkpoints)
    command = [*task.command, *([RESUME] if resumed else [])]
    with open(log, "x", encoding="utf-8") as file:
        print(f"on {socket.gethostname()}: {shlex.join(command)}", file=file, flush=True)
        for path in damaged:
            print(f"not whole, and now called {path.name}{DAMAGED}: {path}", file=file, flush=True)
        process = subprocess.Popen(
            [*_ending_with_this_process(), *command],
            cwd=task.folder,
            env={**os.environ, **task.environment, **further},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _running.add(process)
        try:
            return process.wait()
        finally:
            _end(process)
            process.wait()  # the next attempt may begin at once
            _running.discard(process)


def end_all() -> None:
    """Ends the commands that this process, in whichever thread, waits for. Each is told once: a second SIGTERM would interrupt
    what a training does to end."""
    while _running:
        _end(_running.pop())


def program(name: str) -> str:
    """Path of a program of this environment."""
    return str(Path(sys.executable).with_name(name))


def nnunets_environment() -> dict[str, str]:
    """nnU-Net's variables of this process, its folders as whole paths, for other machines."""
    own = {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}
    return own | {name: str(Path(own[name]).resolve()) for name in FOLDERS if name in own}


def _set_aside(checkpoints: tuple[Path, ...]) -> Iterator[Path]:
    """Renames the checkpoints that are not whole: a host that is killed while it writes one in place leaves such a file, and
    its `--c` would fail on it for ever.

    Yields:
        What they were called.
    """
    for path in checkpoints:
        if path.is_file() and not zipfile.is_zipfile(path):
            path.replace(path.with_name(path.name + DAMAGED))
            yield path


def _ending_with_this_process() -> list[str]:
    """util-linux's program by which the kernel ends a command when what started it has ended, also after SIGKILL."""
    program = shutil.which("setpriv")
    return [] if program is None else [program, "--pdeathsig", "TERM", "--"]


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):  # it has ended in between
        process.terminate()
