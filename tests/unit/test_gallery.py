"""The gallery is what its script makes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gallery

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_scripts_and_its_pictures_are_there():
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert text == gallery.page(), "run: python benchmarks/gallery.py"
    pictures = re.findall(r"\((images/[^)]+)\)", text)
    assert len(pictures) == 2 * len(gallery.PANELS)
    assert {ROOT / "docs" / name for name in pictures} == set(gallery.FOLDER.glob("*.png"))


@pytest.mark.parametrize("dims", [2, 3])
def test_stronger_settings_move_more(dims, tmp_path):
    data = gallery.phantoms(dims)
    rows, names = gallery.deformations(data, {})
    assert names == ["displacement", "rotation", "scaling"]
    for row in rows:
        moved = [np.abs(cell.picture - row[0].picture).mean() for cell in row[1:] if "rejected" not in cell.title]
        assert moved[0] > 0
        assert max(moved) > moved[0]
    gallery.save(rows, tmp_path / "picture.png", names)
    assert np.asarray(Image.open(tmp_path / "picture.png").convert("L")).std() > 10
