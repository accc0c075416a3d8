"""Tasks run in the order of what they need, each is done once, and what is killed is begun again; commands are real and tiny."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_genseg.sweep.engines import ENGINES, Engine, Resources
from nnunetv2_genseg.sweep.running import Record, State, run
from nnunetv2_genseg.sweep.task import Task

ATTEMPTS = 3


def shell(folder: Path, name: str, script: str, needs: tuple[str, ...] = (), produces: bool = True) -> Task:
    """A task whose command is a script of the shell."""
    return Task(name, ("/bin/sh", "-c", script), folder, products=(folder / name,) if produces else (), needs=needs)


def append(name: str) -> str:
    """A script that says that it has finished and leaves the product."""
    return f"echo {name} >> finished; : > {name}"


def write_whole(path: Path) -> None:
    """A checkpoint."""
    torch.save({"epoch": 1}, path)


class Sweep:
    """Runs tasks on an engine, and keeps every change of a state."""

    def __init__(self, folder: Path, engine: str = "local", jobs: int = 2, gpu: bool = False, **options: Any) -> None:
        self.folder, self.jobs = folder, jobs
        self.resources = Resources(jobs, folder / "logs", gpu, options or {"cluster": "local"})
        self.engine = engine
        self.seen: list[tuple[str, State]] = []
        self.resources.logs.mkdir(parents=True, exist_ok=True)

    def tell(self, records: list[Record]) -> None:
        for record in records:
            if (record.task.name, record.state) not in self.seen:
                self.seen.append((record.task.name, record.state))

    def run(self, *tasks: Task, attempts: int = ATTEMPTS) -> dict[str, Record]:
        with closing(ENGINES[self.engine](self.resources)) as engine:
            return self.run_on(engine, *tasks, attempts=attempts)

    def run_on(self, engine: Engine, *tasks: Task, attempts: int = ATTEMPTS) -> dict[str, Record]:
        records = run(tasks, engine, self.jobs, attempts, self.resources.logs, self.tell)
        return {record.task.name: record for record in records}

    def finished(self) -> list[str]:
        path = self.folder / "finished"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def test_a_task_follows_what_it_needs_wherever_it_stands(sweep, tmp_path):
    last = shell(tmp_path, "last", append("last"), ("first", "second"))
    others = [shell(tmp_path, name, f"sleep 0.1; {append(name)}") for name in ("first", "second", "third")]
    records = sweep.run(last, *others)
    assert {record.state for record in records.values()} == {State.DONE}
    assert sweep.seen.index(("last", State.QUEUED)) > max(sweep.seen.index((name, State.DONE)) for name in ("first", "second"))


def test_what_is_done_is_not_run_again(sweep, tmp_path):
    task = shell(tmp_path, "a", append("a"))
    assert sweep.run(task)["a"].attempts == 1
    assert sweep.run(task)["a"].attempts == 0
    assert sweep.finished() == ["a"]


def test_a_failure_leaves_out_what_needs_it_and_nothing_else(sweep, tmp_path):
    records = sweep.run(
        shell(tmp_path, "a", "echo no memory; exit 1"),
        shell(tmp_path, "b", append("b"), ("a",)),
        shell(tmp_path, "c", append("c"), ("b",)),
        shell(tmp_path, "d", append("d")),
    )
    assert {name: record.state.value for name, record in records.items()} == {
        "a": "failed",
        "b": "left out",
        "c": "left out",
        "d": "done",
    }
    assert (records["a"].attempts, records["a"].fault) == (ATTEMPTS, "exit status 1: no memory")
    assert sweep.finished() == ["d"]


def test_a_users_mistake_is_not_tried_again(sweep, tmp_path):
    record = sweep.run(shell(tmp_path, "a", "echo genseg: wrong fold; exit 2"))["a"]
    assert (record.state, record.attempts, record.fault) == (State.FAILED, 1, "exit status 2: genseg: wrong fold")


def test_an_exit_status_of_zero_without_the_product_is_a_failure(sweep, tmp_path):
    record = sweep.run(shell(tmp_path, "a", "true"), attempts=1)["a"]
    assert (record.state, record.fault) == (State.FAILED, f"it ended without {tmp_path / 'a'}")


def test_what_was_killed_goes_on_from_its_checkpoint(sweep, tmp_path):
    write_whole(tmp_path / "whole")
    script = 'if [ "$1" = --c ]; then ' + append("a") + "; else cp whole checkpoint; kill -9 $$; fi"
    task = Task(
        "a", ("/bin/sh", "-c", script, "sh"), tmp_path, products=(tmp_path / "a",), checkpoints=(tmp_path / "checkpoint",)
    )
    record = sweep.run(task)["a"]
    assert (record.state, record.attempts, record.fault) == (State.DONE, 2, "signal 9")
    assert record.log is not None and record.log.read_text().rstrip().endswith("sh --c")


@pytest.mark.parametrize("older", [True, False])
def test_a_checkpoint_that_is_not_whole_is_set_aside(sweep, tmp_path, older):
    """As stock nnU-Net leaves it when it is killed while it writes."""
    latest, best = tmp_path / "latest.pth", tmp_path / "best.pth"
    write_whole(best)
    torn = best.read_bytes()[:-10]
    latest.write_bytes(torn)
    if not older:
        best.unlink()
    script = f"echo resumed: $1.; {append('a')}"
    task = Task("a", ("/bin/sh", "-c", script, "sh"), tmp_path, products=(tmp_path / "a",), checkpoints=(latest, best))
    record = sweep.run(task)["a"]
    assert (record.state, record.attempts) == (State.DONE, 1)
    assert (tmp_path / "latest.pth.damaged").read_bytes() == torn and not latest.exists()
    assert record.log is not None
    lines = record.log.read_text().splitlines()[1:]
    assert lines == [f"not whole, and now called latest.pth.damaged: {latest}", "resumed: --c." if older else "resumed: ."]


def test_a_product_that_is_there_counts_although_the_worker_was_lost(sweep, tmp_path):
    assert sweep.run(shell(tmp_path, "a", append("a") + "; kill -9 $$"))["a"].attempts == 1


def test_two_hundred_tasks_on_eight_workers_with_twenty_kills_are_finished_once_each(tmp_path):
    """A product is a hard link, made in one step, which fails if it is there already."""
    sweep = Sweep(tmp_path, jobs=8)
    (tmp_path / "seed").touch()
    tasks = [shell(tmp_path, f"t{k:03d}", f"sleep 0.2; ln seed t{k:03d} || echo t{k:03d} >> finished") for k in range(200)]
    stop, killed = threading.Event(), []

    def kill() -> None:
        rng = random.Random(0)
        while len(killed) < 20 and not stop.wait(0.15):
            with suppress(OSError):  # a command has ended in between
                if running := [pid for pid in started_here() if b"ln seed" in Path(f"/proc/{pid}/cmdline").read_bytes()]:
                    os.kill(pid := rng.choice(running), signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    records = sweep.run(*tasks, attempts=10)
    stop.set()
    killer.join()
    assert len(killed) == 20
    assert {record.state for record in records.values()} == {State.DONE}
    assert sweep.finished() == [], "finished twice"
    assert 10 <= sum(record.attempts - 1 for record in records.values()) <= 20, "a kill after the link costs no attempt"


def started_here() -> list[int]:
    """Processes that a thread of this one has started."""
    return [int(pid) for thread in Path("/proc/self/task").iterdir() for pid in (thread / "children").read_text().split()]


def test_commands_end_with_what_started_them(tmp_path):
    """Also after SIGKILL, which leaves the sweep no time to end anything."""
    program = (
        "from pathlib import Path; from nnunetv2_genseg.sweep.task import Task, perform; import sys; "
        "perform(Task('a', ('/bin/sh', '-c', 'echo $$ > pid; exec sleep 60'), Path(sys.argv[1])), Path(sys.argv[1]) / 'log')"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.02)
    process.kill()
    process.wait()
    end = time.monotonic() + 5
    while Path(f"/proc/{pid.read_text().strip()}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_an_attempt_of_an_earlier_sweep_is_waited_for_and_counts(sweep, tmp_path):
    """A job of SLURM goes on when its sweep is killed."""
    task = shell(tmp_path, "a", f": > begun; until [ -e go ]; do sleep 0.05; done; {append('a')}")
    program = f"""from pathlib import Path; from nnunetv2_genseg.sweep.task import Task, perform
perform(Task("a", {task.command!r}, Path({str(tmp_path)!r})), Path({str(sweep.resources.logs / "old.txt")!r}))"""
    earlier = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    threading.Timer(0.5, (tmp_path / "go").touch).start()
    record = sweep.run(task)["a"]
    assert (record.state, record.attempts) == (State.DONE, 1)
    assert sweep.finished() == ["a"]
    assert earlier.wait() == 0


def test_closing_an_engine_ends_its_commands(sweep, tmp_path):
    engine = ENGINES["local"](sweep.resources)
    future, *others = [engine.submit(shell(tmp_path, name, "sleep 60"), tmp_path / f"{name}.log") for name in "abcd"]
    while not (tmp_path / "a.log").exists():
        time.sleep(0.02)
    engine.close()
    assert future.result() == -signal.SIGTERM
    assert others[-1].cancelled()
