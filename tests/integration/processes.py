"""Trainings in processes of their own, which die or fail at a chosen moment: real faults, less than a second a restart."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.checkpoint import sibling
from nnunetv2_genseg.trainers import GenSegTrainerShort, recording

from .conftest import TINY, Workspace, make_repeatable, make_trainer

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])

METHODS = ("on_train_start", "on_epoch_start", "train_step", "validation_step", "on_train_end")
LOOP_METHODS = ("sample", "training_step", "feedback_step", "preview")
LONGEST = 900.0
"""Seconds without a word after which a training counts as hung."""


@dataclass(frozen=True)
class Moment:
    """When something happens to a training, and what."""

    event: str
    """Pattern of `METHOD`, `METHOD done`, `open FILE`, `rename FILE`, `remove FILE` or `fsync FILE`."""
    count: int = 1
    """At the how-manyeth event that fits."""
    fault: str = "kill"
    """`kill`: SIGKILL at once. `kill in write`: the kernel kills the process when the file that it writes reaches `size`.
    `disk full`: the kernel refuses to write more than `size` to it. `kill worker`: SIGKILL to a data-loading process.
    `read-only folder`: the fold folder's mode bits. `kill from outside`: SIGKILL by the parent, `seconds` later."""
    size: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.fault == "kill from outside":
            return f"SIGKILL from outside, {self.seconds:.2f} s after `{self.event}`, number {self.count}"
        words = {"kill": "SIGKILL at", "kill in write": f"killed at byte {self.size} after"}
        return f"{words.get(self.fault, f'{self.fault} after')} `{self.event}`, number {self.count}"


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    exit_status: int
    """Negative: the signal that ended it."""
    epochs: list[int]
    """The epochs that it began."""
    error: str
    """Class and message of the exception that ended it; empty if there was none."""
    memory: list[tuple[int, int]]
    """(iteration, resident bytes) where asked for."""
    seconds: float
    """From the trainer's construction to the end."""
    trace: str = ""
    loading: frozenset[int] = frozenset()
    """Processes that loaded data for it when its last epoch began."""

    @property
    def killed(self) -> bool:
        return self.exit_status in (-signal.SIGKILL, -signal.SIGXFSZ)


@dataclass(frozen=True)
class Training:
    """A short training on the 2D phantom: CPU, one thread, fixed seed."""

    workspace: Workspace
    results: Path
    dataset: str = "Dataset901_Phantom2D"
    length: str = "6,2,1,2,5"
    """Epochs, iterations, validation iterations, epochs between checkpoints, seed."""
    settings: dict[str, Any] = field(default_factory=lambda: {"feedback": {"interval": 1}})
    workers: int = 0
    """Data-loading processes."""
    fold: int = 0
    unprivileged: bool = False
    """Mode bits are respected, by root too."""
    memory_every: int = 0
    """Iterations between two looks at the memory; 0: none."""
    device: str = "cpu"
    checkpoints: bool = True
    """False: nnU-Net's `--disable_checkpointing`."""

    @property
    def folder(self) -> Path:
        """The fold folder."""
        return self.results / self.dataset / f"GenSegTrainerShort__{TINY}__2d" / f"fold_{self.fold}"

    def final_state(self) -> dict[str, Any]:
        """Everything that a finished training leaves and that no fault may change: weights, optimisers, random states."""
        path = self.folder / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        generator = torch.load(sibling(path, content["current_epoch"]), weights_only=True)
        kept = ("network_weights", "optimizer_state", "current_epoch")
        return {"segmenter": {name: content[name] for name in kept}, "generator": generator["state"]["loop"]}

    def run(self, moment: Moment | None = None, *, resume: bool = False) -> Outcome:
        """Trains, with nnU-Net's `--c` or without, to the end or until `moment` ends it."""
        self.results.mkdir(parents=True, exist_ok=True)
        configuration = self.results / "genseg.json"
        configuration.write_text(json.dumps(self.settings))
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_train, args=(theirs, self, moment, resume))
        process.start()
        theirs.close()
        assert process.pid is not None
        started = heard = time.monotonic()
        deadline = None
        epochs, memory, error, trace, loading = [], [], "", "", frozenset[int]()
        while True:
            now = time.monotonic()
            if now - heard > LONGEST or (deadline is not None and now >= deadline):
                os.kill(process.pid, signal.SIGKILL)
                hung, deadline = deadline is None, None
                assert not hung, f"no end after {LONGEST} s"
            if not ours.poll(max(0.0, deadline - now) if deadline is not None else 1.0):
                continue
            try:
                kind, *content = ours.recv()
            except EOFError:
                break
            heard = time.monotonic()
            if kind == "ready":
                started = heard
            elif kind == "moment":
                deadline = heard + moment.seconds
            elif kind == "epoch":
                epochs.append(*content)
            elif kind == "loading":
                (loading,) = content
            elif kind == "memory":
                memory.append(tuple(content))
            else:
                error, trace = content
        process.join()
        assert process.exitcode is not None
        return Outcome(process.exitcode, epochs, error, memory, time.monotonic() - started, trace, loading)


def memory_slope(samples: list[tuple[int, int]], warm_up: int) -> float:
    """Bytes an iteration, by least squares over the samples (iteration, bytes) after the warm-up."""
    iteration, resident = np.array([sample for sample in samples if sample[0] > warm_up]).T
    return float(np.polyfit(iteration, resident, 1)[0])


def differences(first: Any, second: Any, name: str = "") -> Iterator[str]:
    """Names of what is not equal bit for bit in two nests of dictionaries and lists."""
    if isinstance(first, torch.Tensor):
        if not torch.equal(first, second):
            yield name
    elif isinstance(first, dict):
        if first.keys() != second.keys():
            yield f"{name}: keys"
        for key in first.keys() & second.keys():
            yield from differences(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, (list, tuple)):
        if len(first) != len(second):
            yield f"{name}: length"
        for i, (mine, other) in enumerate(zip(first, second)):
            yield from differences(mine, other, f"{name}[{i}]")
    elif first != second:
        yield name


def _train(connection: Connection, training: Training, moment: Moment | None, resume: bool) -> None:
    """In the child: a training as nnU-Net's command line runs it, without the final validation."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loading processes, as where a user trains
    make_repeatable()
    # pictures in the first and the last epoch alone: drawing takes longer than training here, and one more memory
    mock.patch.object(recording, "PICTURE_TIME", 1e-9).start()
    mock.patch.object(nnUNetTrainer, "sleep").start()  # nnU-Net waits 2.5 seconds for each line that it cannot log
    os.environ.update(training.workspace.environment)
    os.environ.update(nnUNet_results=str(training.results), nnUNet_n_proc_DA=str(training.workers))
    os.environ["nnUNet_genseg_config"] = str(training.results / "genseg.json")
    if training.unprivileged:
        _drop_capabilities()
    try:
        trainer = make_trainer(
            GenSegTrainerShort,
            training.dataset,
            "2d",
            training.length,
            training.fold,
            resume,
            plans_name=TINY,
            device=training.device,
        )
        trainer.disable_checkpointing = not training.checkpoints
        trainer.initialize()
        maybe_load_checkpoint(trainer, resume, False)
        on_event = _fault(trainer, moment, connection) if moment else lambda event: None
        if moment:
            _watch_files(on_event)
        for owner, names in ((trainer, METHODS), (trainer.loop, LOOP_METHODS)):
            for name in names:
                setattr(owner, name, _watched(getattr(owner, name), name, on_event))
        _report(trainer, connection, training.memory_every)
        connection.send(("ready",))
        trainer.run_training()
        if moment and moment.fault == "kill from outside":
            signal.pause()  # however fast this machine trains, it is killed
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}", traceback.format_exc()))
        sys.exit(2)
    finally:  # coverage writes its file when the process ends
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _watched(method: Callable[..., Any], name: str, on_event: Callable[[str], None]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        on_event(name)
        result = method(*arguments)
        on_event(f"{name} done")
        return result

    return call


def _report(trainer: Any, connection: Connection, memory_every: int) -> None:
    begin, step, done = trainer.on_epoch_start, trainer.train_step, 0

    def epoch() -> None:
        connection.send(("epoch", trainer.current_epoch))
        begin()
        connection.send(("loading", frozenset(child.pid for child in multiprocessing.active_children())))

    def iteration(batch: dict[str, Any]) -> Any:
        nonlocal done
        done += 1
        if done % memory_every == 0:
            connection.send(("memory", done, _memory(trainer.device)))
        return step(batch)

    trainer.on_epoch_start = epoch
    if memory_every:
        trainer.train_step = iteration


def _memory(device: torch.device) -> int:
    """Bytes that the process holds, on a GPU those of its tensors; on a CPU its loading processes' own too."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resident + sum(_of_its_own(process.pid) for process in multiprocessing.active_children())


def _of_its_own(pid: int | None) -> int:
    """Bytes that a process shares with no other."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return 1024 * sum(int(line.split()[1]) for line in rollup if line.startswith("Private"))


def _watch_files(on_event: Callable[[str], None]) -> None:
    """Calls `on_event` before a file is opened, renamed, removed or flushed to the disk."""
    flush = os.fsync

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove") and isinstance(arguments[0], (str, Path)):
            on_event(f"{event.removeprefix('os.')} {Path(arguments[0]).name}")

    def fsync(descriptor: int) -> None:
        on_event(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        flush(descriptor)

    sys.addaudithook(audit)
    os.fsync = fsync


def _fault(trainer: Any, moment: Moment, connection: Connection) -> Callable[[str], None]:
    """What shall be called at every event, and brings about the fault when its moment has come."""
    seen = 0

    def on_event(event: str) -> None:
        nonlocal seen
        if not fnmatchcase(event, moment.event):
            return
        seen += 1
        if seen != moment.count:
            return
        if moment.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif moment.fault == "kill from outside":
            connection.send(("moment",))
        elif moment.fault == "kill worker":
            os.kill(trainer.dataloader_train._processes[0].pid, signal.SIGKILL)
        elif moment.fault == "read-only folder":
            os.chmod(trainer.output_folder, 0o555)
        else:
            if moment.fault == "kill in write":
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it: writing fails instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (moment.size, resource.RLIM_INFINITY))

    return on_event


def _drop_capabilities() -> None:
    """capset(2) with empty sets: root is bound by mode bits like anybody."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")
