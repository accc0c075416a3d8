"""Real cases beside pairs: every file of a case is copied, once, and whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nnunetv2_genseg.config import GenSegError, GenSegFileError
from nnunetv2_genseg.trainers.real_cases import copy_cases, raw_dataset, require_other_names


@pytest.fixture
def files(tmp_path: Path) -> dict[str, tuple[list[Path], Path]]:
    """A case of two channels in TIFF, with files that hold its spacing, under other names than nnU-Net's."""
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "mixed" / "imagesTr").mkdir(parents=True)
    (tmp_path / "mixed" / "labelsTr").mkdir()
    for name in ("scan_0000.tiff", "other_0000.tiff", "mask.tiff", "scan.json", "mask.json"):
        (source / name).write_text(f"content of {name}")
    return {"case": ([source / "scan_0000.tiff", source / "other_0000.tiff"], source / "mask.tiff")}


def test_all_files_of_a_case_are_copied(files, tmp_path):
    copy_cases(files, ".tiff", tmp_path / "mixed")
    found = {str(path.relative_to(tmp_path / "mixed")): path.read_text() for path in (tmp_path / "mixed").rglob("*.*")}
    assert found == {
        "imagesTr/case_0000.tiff": "content of scan_0000.tiff",
        "imagesTr/case_0001.tiff": "content of other_0000.tiff",
        "imagesTr/case.json": "content of scan.json",
        "labelsTr/case.tiff": "content of mask.tiff",
        "labelsTr/case.json": "content of mask.json",
    }


def test_what_is_there_is_not_copied_again_and_what_is_cut_short_is(files, tmp_path):
    copy_cases(files, ".tiff", tmp_path / "mixed")
    whole, cut = (tmp_path / "mixed" / "imagesTr" / f"case_000{i}.tiff" for i in range(2))
    cut.write_text("cont")
    os.utime(whole, (1, 1))
    copy_cases(files, ".tiff", tmp_path / "mixed")
    assert whole.stat().st_mtime == 1
    assert cut.read_text() == "content of other_0000.tiff"


def test_a_full_disk_leaves_nothing_half_written(files, tmp_path, monkeypatch):
    def full(source: Path, target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(GenSegFileError, match="No space left"):
        copy_cases(files, ".tiff", tmp_path / "mixed")
    assert not list((tmp_path / "mixed").rglob("*.*"))


def test_names_of_datasets(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert raw_dataset("Dataset905_Mixed") == tmp_path / "nnUNet_raw" / "Dataset905_Mixed"
    (tmp_path / "nnUNet_preprocessed" / "Dataset905_Mixed").mkdir()
    raw_dataset("Dataset905_Mixed")  # it goes on there
    with pytest.raises(GenSegError, match="nnUNet_preprocessed holds Dataset905_Mixed already"):
        raw_dataset("Dataset905_Other")
    for name in ("Dataset90_Mixed", "905", "Dataset905_", "../Dataset905_Mixed"):
        with pytest.raises(GenSegError, match="needs a name such as"):
            raw_dataset(name)
    require_other_names(["a"], ["b"])
    with pytest.raises(GenSegError, match="names of pairs \\(a\\)"):
        require_other_names(["a", "c"], ["a", "b"])
