"""Work on many cases in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers import processes


def write(folder: Path, name: str) -> None:
    if name == "faulty":
        raise GenSegError("case faulty cannot be read; restore or remove it")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / name).write_text(str(os.getpid()))


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process would import torch first, for seconds."""
    monkeypatch.setattr(processes, "get_context", lambda method: multiprocessing.get_context("fork"))


@pytest.mark.parametrize("count", [1, 3])
def test_what_follows_happens_here_when_the_work_on_a_case_is_done(tmp_path, monkeypatch, count):
    monkeypatch.setattr(processes, "default_num_processes", count)
    names, by = [f"case{i}" for i in range(5)], {}
    processes.by_processes(partial(write, tmp_path), names, lambda name: by.update({name: (tmp_path / name).read_text()}))
    assert sorted(by) == names
    assert (str(os.getpid()) in by.values()) == (count == 1)


@pytest.mark.parametrize(("name", "message"), [("faulty", "case faulty cannot be read"), ("killed", "memory was full")])
def test_a_fault_of_a_process_is_told_here(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(processes, "default_num_processes", 2)
    with pytest.raises(GenSegError, match=message):
        processes.by_processes(partial(write, tmp_path), ["case", name], lambda name: None)


def test_without_cases_nothing_is_done(monkeypatch, capsys):
    monkeypatch.setattr(processes, "default_num_processes", 2)
    processes.by_processes(print, [], print)
    assert capsys.readouterr().out == ""
