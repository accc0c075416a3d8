"""The examples that need a planned dataset."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from .conftest import Shell

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def dataset(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("nnUNet_raw", str(shell.folder / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(shell.folder / "nnUNet_preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("nnUNet_genseg_short", "1,2,1,1,0")
    monkeypatch.setenv("nnUNet_extTrainer", "")
    monkeypatch.setenv("nnUNet_genseg_set", "")
    return "903"


def test_train_from_python(dataset: str, monkeypatch: pytest.MonkeyPatch):
    from nnunetv2.paths import nnUNet_results  # noqa: F401

    from nnunetv2_genseg.trainers import GenSegTrainerShort

    module = runpy.run_path(str(EXAMPLES / "train_from_python.py"))
    assert module["GentleTrainer"].preset_epochs == 5
    short = type("GentleTrainerShort", (GenSegTrainerShort,), {"preset": module["GentleTrainer"].preset})
    fold = module["train"](dataset, "2d", "0", short)
    assert (fold / "checkpoint_final.pth").is_file()
    assert (fold / "validation" / "summary.json").is_file()
    assert json.loads((fold / "genseg_config.json").read_text())["deformation"]["rotation"] == 10.0


def test_look_at_pairs(dataset: str, tmp_path: Path):
    pages = runpy.run_path(str(EXAMPLES / "look_at_pairs.py"))["compare"](dataset, "2d", tmp_path / "out")
    assert [page.parent.name for page in pages] == ["gentle", "default", "strong"]
    texts = [page.read_text() for page in pages]
    assert len(set(texts)) == 3
    assert ["deformation.rotation" in text for text in texts] == [True, False, True]
