"""The page of `genseg preview`, in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from playwright.sync_api import Page

from nnunetv2_genseg.plots.page import Section, write_page

HOSTILE = "<img src=x onerror=\"document.title='broken'\">"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    picture = tmp_path / "a.png"
    plt.imsave(picture, np.zeros((40, 1200)))
    sections = [Section(HOSTILE, "said & shown", picture)]
    return write_page(tmp_path / "page.html", "Pairs", [HOSTILE], sections, {"mixing.share": HOSTILE})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_readable_everywhere(
    page: Page, written: Path, serious_faults: Callable[[Page], list[str]], scheme: str, width: int
) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(written.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_role("img").evaluate("image => image.naturalWidth") == 1200
    assert serious_faults(page) == []


def test_names_are_text(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    assert page.title() == "Pairs"
    assert page.get_by_role("heading", level=2).first.inner_text() == HOSTILE
