"""A line a change where there is no terminal, a table in one, and the same in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

from nnunetv2_genseg.sweep.report import Report
from nnunetv2_genseg.sweep.running import Record, State
from nnunetv2_genseg.sweep.task import Task


def exit_status(number: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(number)
    return future


def log(folder: Path, text: str) -> Path:
    path = folder / "log.txt"
    path.write_text(f"on a node: the command\n{text}\n")
    return path


def test_every_change_is_a_line_with_what_ended_the_attempt_before(tmp_path, capsys):
    report, record = Report(tmp_path / "plan.json", {"plan": {}}), Record(Task("a", ("sh",), tmp_path))
    with report.shown():
        for _ in range(2):
            report.tell([record])
            record.begin(log(tmp_path, "no memory"))
            report.tell([record])
            record.look()
            report.tell([record])
            report.tell([record])
            record.end(exit_status(1), attempts=2)
        report.tell([record])
    assert capsys.readouterr().out.splitlines() == [
        "a: queued",
        "a: running",
        "a: waiting",
        "a: queued, attempt 2, after exit status 1: no memory",
        "a: running, attempt 2",
        f"a: failed, attempt 2: exit status 1: no memory (log: {tmp_path / 'log.txt'})",
    ]
    (entry,) = json.loads(report.path.read_text())["tasks"]
    assert (entry["state"], entry["attempts"], entry["command"]) == ("failed", 2, "sh")


def test_what_was_done_before_is_said_to_be(tmp_path, capsys):
    report, record = Report(tmp_path / "plan.json", {}), Record(Task("a", ("sh",), tmp_path), State.DONE)
    with report.shown():
        report.tell([record])
    assert capsys.readouterr().out == "a: done before\n"
    assert json.loads(report.path.read_text())["states"] == {"done": 1}


def test_an_interrupted_run_leaves_its_table(tmp_path):
    report, record = Report(tmp_path / "plan.json", {}), Record(Task("a", ("sh",), tmp_path))
    try:
        with report.shown():
            record.begin(tmp_path / "log")
            report.tell([record])
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert json.loads(report.path.read_text())["states"] == {"queued": 1}


def test_in_a_terminal_there_is_one_table_with_failures_first(tmp_path):
    program = tmp_path / "show.py"
    program.write_text(
        "from pathlib import Path\n"
        "from nnunetv2_genseg.sweep.report import Report\n"
        "from nnunetv2_genseg.sweep.running import Record, State\n"
        "from nnunetv2_genseg.sweep.task import Task\n"
        "of = lambda name, state: Record(Task(name, ('sh',), Path('.')), state, 1, 61.0, fault='signal 9 [GPU 0]')\n"
        f"report = Report(Path({str(tmp_path / 'plan.json')!r}), {{}})\n"
        "with report.shown():\n"
        "    report.tell([of('first', State.DONE), of('second', State.FAILED)])\n"
    )
    done = subprocess.run(
        ["script", "-qec", f"stty cols 100; {sys.executable} {program}", "/dev/null"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "1 failed, 1 done" in done.stdout
    assert 0 < done.stdout.index("second") < done.stdout.index("first")
    assert "signal 9 [GPU 0]" in done.stdout
