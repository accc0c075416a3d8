"""What the commands say of themselves, and what `--set` leaves behind."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from nnunetv2_genseg import cli
from nnunetv2_genseg.cli import pretrain, train
from nnunetv2_genseg.cli.main import WITH_OPTIONS, WITHOUT_OPTIONS
from nnunetv2_genseg.cli.options import let_trainers_be_found
from nnunetv2_genseg.config import GenSegConfig, resolve
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch):
    """What a command sets is undone."""
    for name in (OVERRIDES, EXTERNAL_TRAINERS):
        monkeypatch.setenv(name, "")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command(capsys):
    text = said(capsys, "--help")
    assert all(f"\n    {name} " in text for name in [*WITH_OPTIONS, *WITHOUT_OPTIONS])


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_every_command_has_its_help(name, capsys):
    text = said(capsys, name, "--help")
    assert f"usage: genseg {name}" in text
    assert ("--set" in text) == (name not in ("quality", "report", "review", "sweep", "demo"))
    assert ("-pretrained_weights" in text) == (name == "train"), "nnU-Net's own options follow"


def test_settings_of_one_call_do_not_reach_the_next():
    let_trainers_be_found(["deformation.rotation=5", "seed=1"])
    assert resolve().deformation.rotation == 5
    assert "\n" in os.environ[OVERRIDES]
    let_trainers_be_found([])
    assert resolve() == GenSegConfig()


@pytest.mark.parametrize(("command", "option"), [(pretrain, "images"), (train, "unlabelled")])
def test_folders_that_are_named_one_by_one_are_all_taken(command, option):
    arguments = ["104", "2d", "0", f"--{option}", "a", "b", f"--{option}", "c"]
    for _ in range(2):
        chosen, _ = command.parser().parse_known_args(arguments)
        assert getattr(chosen, option) == [Path("a"), Path("b"), Path("c")]


@pytest.mark.parametrize(("number", "threads"), [("3", 3), ("", None), ("0", None), ("2,1", None)])
def test_nnunet_takes_as_many_threads_on_the_cpu_as_are_asked_for(monkeypatch, number, threads):
    """nnU-Net's `run_training_entry` takes multiprocessing.cpu_count() of them, whatever torch has read from OMP_NUM_THREADS."""
    monkeypatch.setattr(multiprocessing, "cpu_count", multiprocessing.cpu_count)
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    before = multiprocessing.cpu_count()
    train._limit_threads()
    assert multiprocessing.cpu_count() == (threads or before)
