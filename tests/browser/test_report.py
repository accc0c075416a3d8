"""The page of `genseg report`, in a browser."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from nnunetv2_genseg import cli
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES
from nnunetv2_genseg.phantoms import PhantomDataset
from nnunetv2_genseg.plots.curves import Curves
from nnunetv2_genseg.plots.gallery import DETAILS, Detail, strip
from nnunetv2_genseg.plots.report import FOR_PICTURES, LARGEST, Content, Item, View, page_of
from nnunetv2_genseg.plots.slices import window_of_volume
from nnunetv2_genseg.trainers import GenSegTrainerShort
from tests.integration.conftest import make_trainer
from tests.integration.datasets import plan, use_threads

HOSTILE = "<img src=x onerror=\"document.title='broken'\"></script>"
SLICES = 8
LARGEST_PICTURE = 200_000
"""Bytes of the picture of the how-to page."""


def phantom(seed: int, shape: tuple[int, ...], detail: Detail = DETAILS[0]) -> Any:
    """A picture of a phantom: (slices, height, width)."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    distance = np.sqrt(((grid - rng.uniform(-0.2, 0.2, 3).reshape(3, 1, 1, 1)) ** 2)[-2:].sum(axis=0) + grid[0] ** 2)
    labels = (distance < 0.7).astype(int) + (distance < 0.3)
    image = labels + rng.normal(0, 0.2, shape)
    return strip(image[None], labels, (1.0, 1.0), window_of_volume(image[None]), detail)


def content(count: int = 10, slices: int = SLICES, **changes: Any) -> Content:
    items = [Item(f"synthetic_{k:05d}", "tr_000" if k else HOSTILE, f"redraw of tr_000, Dice 0.{k}") for k in range(count)]
    pictures = {f"pair {item.pair}": phantom(k, (slices, 32, 24)) for k, item in enumerate(items)}
    pictures |= {f"case {name}": phantom(99, (slices, 32, 24)) for name in ("tr_000", HOSTILE)}
    epochs = [(k, float(np.exp(-k / 10))) for k in range(40)]
    whole: dict[str, Any] = {
        "title": f"Dataset902, {HOSTILE}",
        "facts": {"Trainer": "GenSegTrainer", "Dataset": HOSTILE},
        "settings": {"deformation.rotation": "20", HOSTILE: HOSTILE},
        "curves": [
            Curves("loss", {"training": epochs, "validation": [(k, 1.1 * value) for k, value in epochs], HOSTILE: epochs[:2]}),
            Curves("generator", {"l1": epochs}, logarithmic=True),
            Curves("loss_of_the_segmentation_network_in_the_feedback", {"l1": epochs[:1]}),
        ],
        "views": [View("In the order of their names", "All.", items), View("Highest Dice first", "By Dice.", items[::-1])],
        "pictures": pictures,
        "labels": [("liver", "rgb(0 229 255)"), (HOSTILE, "rgb(255 145 0)")],
        "of_pairs": ["Slices are shown with at most 256 pixels a side."],
        "tables": [
            (f"Dice {HOSTILE}", ("class", "mean", "median", "lower quartile", "n"), [(HOSTILE, "0.8", "0.8", "0.7", "3")])
        ],
        "of_quality": ["10 pairs."],
        "files": {"settings.json": '{"seed": 0}'},
    }
    return Content(**whole | changes)


@pytest.fixture
def opened(page: Page, tmp_path: Path) -> Callable[[Content], Page]:
    def call(shown: Content) -> Page:
        path = tmp_path / "report.html"
        path.write_text(page_of(shown), encoding="utf-8")
        page.goto(path.as_uri())
        return page

    return call


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_readable_everywhere(page, opened, serious_faults, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    opened(content())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".card").count() == 6
    assert page.locator(".card .image").first.evaluate("image => image.naturalHeight") == 32 * SLICES
    assert page.locator(".curves figure > svg").first.evaluate("svg => svg.getBoundingClientRect().width") > 0.6 * min(width, 450)
    line = page.locator(".curves path[style*='--curve-0']").first.evaluate("path => getComputedStyle(path).stroke")
    assert line == ("rgb(108, 182, 255)" if scheme == "dark" else "rgb(11, 92, 173)")
    assert page.get_by_role("list", name="Labels").locator("li").all_inner_texts() == ["liver", HOSTILE]
    assert serious_faults(page) == []


def test_slices_are_scrolled_by_keyboard_in_both_images(page, opened):
    opened(content())
    card = page.locator(".card").first
    slider = card.get_by_role("slider", name="Slice")
    before = slider.get_attribute("aria-valuetext")
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == f"slice 1 of {SLICES}" != before
    page.keyboard.press("ArrowRight")
    assert card.locator(".number").inner_text() == f"2 of {SLICES}"
    tops = card.locator(".view img").evaluate_all("images => images.map((image) => image.style.top)")
    assert tops == ["-100%"] * 4, "real and synthetic image, and their outlines"
    page.keyboard.press("End")
    assert card.locator(".image").nth(1).get_attribute("alt") == f"synthetic: synthetic_00000, slice {SLICES} of {SLICES}"
    frame, image = (card.locator(of).first.evaluate("e => e.getBoundingClientRect().bottom") for of in (".view", ".image"))
    assert abs(frame - image) < 1, "the last slice fills the frame"


def test_photographs_have_no_slider(page, opened):
    opened(content(slices=1))
    assert page.get_by_role("slider").count() == 0
    assert page.locator(".card .image").nth(1).get_attribute("alt") == "synthetic: synthetic_00000"


def test_the_gallery_is_used_by_keyboard(page, opened):
    opened(content())
    first = page.locator(".card h3").first
    assert first.inner_text() == "synthetic_00000" and page.get_by_role("status").inner_text() == "1 to 6 of 10"
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    assert first.inner_text() == "synthetic_00006" and page.get_by_role("status").inner_text() == "7 to 10 of 10"
    page.get_by_role("radio", name="In the order").focus()
    page.keyboard.press("ArrowDown")
    assert first.inner_text() == "synthetic_00009" and page.locator("#note").inner_text() == "By Dice."
    outline = page.locator(".card .outline").first
    expect(outline).to_be_visible()
    page.get_by_role("checkbox", name="Outlines").focus()
    page.keyboard.press("Space")
    expect(outline).to_be_hidden()


def test_everything_can_be_downloaded(page, opened, tmp_path):
    opened(content())
    found = {}
    for link in page.locator("a.download").all():
        with page.expect_download() as started:
            link.click()
        started.value.save_as(tmp_path / started.value.suggested_filename)
        found[started.value.suggested_filename] = (tmp_path / started.value.suggested_filename).read_text()
    assert json.loads(found["settings.json"]) == {"seed": 0}
    assert found["loss.csv"].splitlines()[1].startswith("0,1,1.1,") and len(found["loss.csv"].splitlines()) == 41
    assert len(found) == 5


def test_names_are_text_and_nothing_is_requested(page, opened):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(content())
    assert page.title() == page.get_by_role("heading", level=1).inner_text() == f"Dataset902, {HOSTILE}"
    assert page.locator("figcaption", has_text="real:").first.inner_text() == f"real: {HOSTILE}"
    assert [url[:5] for url in asked if not url.startswith("data:")] == ["file:"]


def test_a_thousand_pairs_are_shown_within_two_seconds(page, opened):
    picture = phantom(0, (8, 48, 48), Detail(48, 8))
    missing = FOR_PICTURES // 1000 - len(picture["image"]) - len(picture["outline"])
    long = picture | {"image": base64.b64encode(base64.b64decode(picture["image"]) + bytes(missing * 3 // 4)).decode()}
    items = [Item(f"synthetic_{k:05d}", "tr_000", "redraw") for k in range(1000)]
    pictures = {f"pair {item.pair}": long for item in items} | {"case tr_000": long}
    shown = content(views=[View("All", "", items)], pictures=pictures)
    assert 16_000_000 < len(page_of(shown).encode()) < LARGEST
    opened(shown)
    assert page.evaluate("document.querySelector('.image').decode().then(() => performance.now())") < 2000
    assert page.get_by_role("status").inner_text() == "1 to 6 of 1000"


def test_a_trained_fold_is_shown(page, tmp_path, monkeypatch):
    """The picture of the how-to page; with GENSEG_PICTURES=docs/images it is made anew."""
    use_threads(monkeypatch)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in (OVERRIDES, EXTERNAL_TRAINERS):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    raw = PhantomDataset(910, 3, 5, 1, extent=24).write(tmp_path / "nnUNet_raw")
    plan(910, "3d_fullres")
    make_trainer(GenSegTrainerShort, raw.name, "3d_fullres", "2,2,1,1,0").run_training()
    of_fold = ("910", "3d_fullres", "0", "-tr", "GenSegTrainerShort", "-device", "cpu")
    cli.main(["report", *of_fold, "-n", "4", "-o", str(tmp_path / "report.html")])
    page.set_viewport_size({"width": 900, "height": 760})
    page.goto((tmp_path / "report.html").as_uri())
    gallery = page.get_by_role("group", name="Which pairs")
    expect(page.get_by_role("heading", name="synthetic_00000", exact=True)).to_be_visible()
    gallery.evaluate("element => element.scrollIntoView()")
    path = Path(os.environ.get("GENSEG_PICTURES", tmp_path)) / "report.png"
    page.screenshot(path=path)
    assert 10_000 < path.stat().st_size < LARGEST_PICTURE
