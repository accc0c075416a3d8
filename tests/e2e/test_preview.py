"""`genseg preview`: pairs before any training."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunetv2_genseg import cli
from nnunetv2_genseg.config.environment import OVERRIDES

from .conftest import Shell


@pytest.fixture
def preview(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Calls `genseg preview` and returns its page's text and pictures."""
    monkeypatch.setenv("nnUNet_preprocessed", str(shell.folder / "nnUNet_preprocessed"))
    monkeypatch.setenv("nnUNet_extTrainer", "")
    monkeypatch.setenv(OVERRIDES, "")
    monkeypatch.delenv("nnUNet_results", raising=False)

    def call(*arguments: str) -> tuple[str, list[np.ndarray]]:
        cli.main(["preview", "903", "2d", "-o", str(tmp_path / "out"), "--pairs", "2", *arguments])
        assert capsys.readouterr().out == f"The page is {tmp_path / 'out' / 'index.html'}\n"
        page = (tmp_path / "out" / "index.html").read_text()
        assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page needs no other file"
        found = [Image.open(BytesIO(base64.b64decode(png))) for png in re.findall(r"base64,([^\"]+)", page)]
        return page, [np.asarray(picture.convert("L"), dtype=float) for picture in found]

    return call


def test_sources_without_a_generator_are_shown_and_of_the_others_is_said_why_not(preview, tmp_path):
    page, pictures = preview()
    assert len(pictures) == 1
    assert pictures[0].std() > 10
    assert "generator (gan) of redraw is untrained" in page
    assert "All are the defaults." in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deformation.png", "index.html"]


def test_settings_change_what_is_drawn_and_are_listed(preview):
    unmoved = ("deformation={displacement: 0, rotation: 0, scaling: 0}", "intensity.tone=0", "paste.probability=0")
    _, (still,) = preview(*(argument for setting in unmoved for argument in ("--set", setting)))
    page, (moved,) = preview("--set", "deformation.rotation=90", "--set", "seed=1")
    assert "<code>deformation.rotation</code></td><td>90" in page
    assert still.shape == moved.shape
    assert change_of_mask(still) < 1, "without a deformation the new mask is the real one"
    assert change_of_mask(moved) > 5


def change_of_mask(picture: np.ndarray) -> float:
    """Mean difference of the columns `its mask` and `new mask`, where they lie best upon each other."""
    width = picture.shape[1] // 5
    mask = picture[60:, int(1.1 * width) : int(1.9 * width)]
    starts = range(2 * width, int(2.2 * width))
    return min(float(np.abs(mask - picture[60:, start : start + mask.shape[1]]).mean()) for start in starts)


def test_a_family_that_has_nothing_to_learn_is_shown(preview):
    page, pictures = preview("-tr", "GenSegTrainerGMM", "0")
    assert len(pictures) == 2
    assert "untrained" not in page


def test_a_trained_generator_is_shown(preview, tmp_path, capsys):
    small = ("--set", "generator.width=0.1", "-device", "cpu")
    cli.main(["pretrain", "903", "2d", str(tmp_path / "generator"), "--iterations", "1", *small])
    capsys.readouterr()
    page, pictures = preview(*small, "--set", f"generator.pretrained={tmp_path / 'generator'}")
    assert len(pictures) == 2
    assert "untrained" not in page
    assert json.loads((tmp_path / "generator" / "config.json").read_text())["family"] == "gan"
