"""Tasks as jobs of a real SLURM: each once, lost ones again, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from nnunetv2_genseg.sweep.engines import ENGINES, slurm
from nnunetv2_genseg.sweep.running import Record, State
from nnunetv2_genseg.sweep.task import Task
from tests.slurm.cluster import LONGEST, Cluster
from tests.unit.test_sweep_running import Sweep, append, shell, write_whole

OPTIONS = {"cluster": "slurm", "timeout_min": 30}


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, "slurm", **OPTIONS)


@contextmanager
def begun(sweep: Sweep, *tasks: Task, attempts: int = 2) -> Iterator[Future[dict[str, Record]]]:
    """The records to come of a sweep that runs beside the test. Whatever happens, it has ended after the block."""
    with ThreadPoolExecutor(1) as beside, closing(ENGINES["slurm"](sweep.resources)) as engine:
        yield beside.submit(sweep.run_on, engine, *tasks, attempts=attempts)


def told(path: Path) -> Callable[[], bool]:
    """Whether a file has its content."""
    return lambda: path.is_file() and path.read_text().endswith("\n")


def test_each_task_is_one_job_after_those_that_it_needs(cluster, sweep, tmp_path, monkeypatch):
    for name, value in {"SLURM_NTASKS": "3", "SLURM_CPU_BIND": "mask_cpu:0x8", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)  # as in a job with three tasks that runs the sweep
    before = len(cluster.jobs())
    tasks = (
        shell(tmp_path, "last", append("last"), ("first one", "second")),
        Task("first one", ("/bin/sh", "-c", append("first")), tmp_path, products=(tmp_path / "first",)),
        shell(tmp_path, "second", append("second")),
        shell(tmp_path, "fails", "echo no memory; exit 1"),
        shell(tmp_path, "left out", append("left"), ("fails",)),
        shell(tmp_path, "wrong", "echo genseg: wrong fold; exit 2"),
    )
    with begun(sweep, *tasks) as to_come:
        records = to_come.result(LONGEST)
    assert {name: (record.state, record.attempts, record.fault) for name, record in records.items()} == {
        "last": (State.DONE, 1, ""),
        "first one": (State.DONE, 1, ""),
        "second": (State.DONE, 1, ""),
        "fails": (State.FAILED, 2, "exit status 1: no memory"),
        "left out": (State.LEFT_OUT, 0, ""),
        "wrong": (State.FAILED, 1, "exit status 2: genseg: wrong fold"),
    }
    finished = sweep.finished()
    assert sorted(finished) == ["first", "last", "second"] and finished[-1] == "last"
    assert sorted(cluster.jobs()[before:]) == ["fails", "fails", "first one", "last", "second", "wrong"]
    assert os.environ["SLURM_NTASKS"] == "3", "it was hidden from jobs alone"


@pytest.mark.parametrize("options", [{}, {"slurm_gres": "gpu:a100:1"}])
def test_a_job_has_a_gpu_of_its_own(cluster, tmp_path, options):
    sweep = Sweep(tmp_path, "slurm", gpu=True, **OPTIONS, **options)
    with begun(sweep, *(shell(tmp_path, name, f"echo $CUDA_VISIBLE_DEVICES >> gpu; {append(name)}") for name in "ab")) as to_come:
        records = to_come.result(LONGEST)
    assert {record.state for record in records.values()} == {State.DONE}
    assert (tmp_path / "gpu").read_text() == "0\n0\n"


@pytest.mark.parametrize("end", ["cancelled", "process killed", "node down"])
def test_a_job_that_is_lost_goes_on_in_another_from_its_checkpoint(cluster, sweep, tmp_path, end):
    write_whole(tmp_path / "whole")
    begin = "cp whole checkpoint; echo $SLURM_JOB_ID $PPID $SLURMD_NODENAME > begun; exec sleep 600"
    script = f'if [ "$1" = --c ]; then {append("a")}; else {begin}; fi'
    command = ("/bin/sh", "-c", script, "sh")
    task = Task("a", command, tmp_path, products=(tmp_path / "a",), checkpoints=(tmp_path / "checkpoint",))

    with begun(sweep, task) as to_come:
        cluster.wait_for(told(tmp_path / "begun"), "the job runs")
        job, process, node = (tmp_path / "begun").read_text().split()
        if end == "cancelled":
            cluster.run("scancel", job)
        elif end == "process killed":  # so it leaves no result
            os.kill(int(process), signal.SIGKILL)
        else:
            cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        record = to_come.result(LONGEST)["a"]
    assert (record.state, record.attempts) == (State.DONE, 2), record.fault
    assert sweep.finished() == ["a"]
    assert record.log is not None and record.log.read_text().rstrip().endswith("sh --c")
    if end == "process killed":
        assert "the worker was lost" in record.fault and "last seen as FAILED" in record.fault
    cluster.wait_for(lambda: not cluster.queue(), "no other job was begun")


def test_a_job_of_a_sweep_that_was_killed_is_waited_for(cluster, sweep, tmp_path):
    task = shell(tmp_path, "a", f"echo > begun; until [ -e go ]; do sleep 0.1; done; {append('a')}")
    program = f"""from pathlib import Path
from tests.unit.test_sweep_running import Sweep, shell
folder = Path({str(tmp_path)!r})
Sweep(folder, "slurm", **{OPTIONS!r}).run(shell(folder, "a", {task.command[-1]!r}))"""
    earlier = subprocess.Popen([sys.executable, "-c", program])
    cluster.wait_for(told(tmp_path / "begun"), "the job of the first sweep runs")
    earlier.kill()
    earlier.wait()

    def waits() -> bool:
        return any("waiting for its end" in path.read_text() for path in sweep.resources.logs.glob("slurm/*.out"))

    with begun(sweep, task) as to_come:
        cluster.wait_for(waits, "the job of the second sweep waits")
        (tmp_path / "go").touch()
        record = to_come.result(LONGEST)["a"]
    assert (record.state, record.attempts) == (State.DONE, 1)
    assert sweep.finished() == ["a"]


def test_closing_cancels_jobs_that_run_and_jobs_that_wait(cluster, tmp_path):
    sweep = Sweep(tmp_path, "slurm", jobs=3, **OPTIONS)
    with closing(ENGINES["slurm"](sweep.resources)) as engine:
        futures = [engine.submit(shell(tmp_path, name, "exec sleep 600"), tmp_path / f"{name}.txt") for name in "abc"]
        cluster.wait_for(lambda: len(cluster.queue()) == 3, "all are in the queue")
        cluster.wait_for(lambda: len([*tmp_path.glob("*.txt")]) == 2, "two run")
    assert all(future.done() for future in futures)
    cluster.wait_for(lambda: not cluster.queue(), "they have ended")


def test_what_slurm_does_not_take_at_first_ends_the_sweep(cluster, tmp_path):
    sweep = Sweep(tmp_path, "slurm", slurm_partition="gpu", **OPTIONS)
    tasks = [shell(tmp_path, name, "true") for name in "abc"]
    with begun(sweep, *tasks) as to_come, pytest.raises(slurm.RefusedError, match="invalid partition specified: gpu"):
        to_come.result(LONGEST)


def test_a_controller_that_is_restarted_costs_nothing(cluster, sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "AGAIN", 1)
    tries = sweep.resources.logs / "slurm"
    with closing(ENGINES["slurm"](sweep.resources)) as engine:
        script = f"echo > begun; until [ -e go ]; do sleep 0.1; done; {append('a')}"
        first = engine.submit(shell(tmp_path, "a", script), tmp_path / "a.txt")
        cluster.wait_for(told(tmp_path / "begun"), "the job runs")
        with cluster.without_controller():
            second = engine.submit(shell(tmp_path, "b", append("b")), tmp_path / "b.txt")
            cluster.wait_for(lambda: len([*tries.glob(".submission*")]) == 2, "the next job is tried twice")
        assert second.result(LONGEST) == 0
        (tmp_path / "go").touch()
        assert first.result(LONGEST) == 0
    assert sweep.finished() == ["b", "a"]
