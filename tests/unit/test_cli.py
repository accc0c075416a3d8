"""What the commands say of themselves, and what `--set` leaves behind."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from nnunetv2_genseg import cli
from nnunetv2_genseg.cli import pretrain, report, train
from nnunetv2_genseg.cli.main import WITH_OPTIONS, WITHOUT_OPTIONS, _is_the_users
from nnunetv2_genseg.cli.options import let_trainers_be_found, prepared_fold
from nnunetv2_genseg.config import GenSegConfig, resolve
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES, SETTINGS


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


def test_a_file_that_no_named_folder_holds_is_no_mistake_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    let_trainers_be_found([])
    own = FileNotFoundError(2, "no such file", str(tmp_path / "raw" / "Dataset104" / "dataset.json"))
    assert _is_the_users(own, ["train", ""])
    monkeypatch.setenv(SETTINGS, str(tmp_path / "locked.yaml"))
    assert _is_the_users(PermissionError(13, "permission denied", str(tmp_path / "locked.yaml")), ["train", ""])
    for path in (Path("somewhere.json").absolute(), tmp_path / "other"):
        assert not _is_the_users(FileNotFoundError(2, "no such file", str(path)), ["train", ""])
    assert not _is_the_users(PermissionError("of no path"), ["train", ""])


def test_a_fold_is_looked_at_with_the_settings_of_its_training(monkeypatch, tmp_path):
    monkeypatch.setenv(SETTINGS, str(tmp_path / "other.yaml"))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    prepared_fold(report.parser().parse_args(["104", "2d", "0", "-device", "cpu"]))
    assert SETTINGS not in os.environ
    assert not os.environ[OVERRIDES]


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
