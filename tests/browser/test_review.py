"""The page of `genseg review`, in a browser."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from nnunetv2_genseg import cli
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES
from nnunetv2_genseg.phantoms import PhantomDataset
from tests.integration.datasets import plan, use_threads
from tests.review_server import served
from tests.written_pairs import write_pairs

HOSTILE = "<img src=x onerror=\"document.title='broken'\">&'%2e#?.."
NAMES = [HOSTILE, *(f"synthetic_{k:05d}" for k in range(4))]
LARGEST_PICTURE = 200_000
"""Bytes of the picture of the how-to page."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("review")
    write_pairs(place, place / "raw", NAMES, dims=3, extent=24)
    return place


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder / "pairs", folder / "raw") as server:
        yield server.address


@pytest.fixture
def opened(page: Page, address: str) -> Callable[..., Page]:
    """Opens the page as a reviewer; each test has its own."""

    def go(reviewer: str, on: Page = page) -> Page:
        on.goto(f"{address}?reviewer={reviewer}")
        shows(on, HOSTILE)
        return on

    return go


def shows(page: Page, name: str) -> None:
    """Waits until the pictures of a pair are there."""
    page.wait_for_function("name => document.getElementById('stage').dataset.shown === name", arg=name)


def judged(page: Page) -> str:
    return page.locator("#count").inner_text()


def decided(folder: Path, reviewer: str) -> dict[str, tuple[str, str, str]]:
    with open(folder / "pairs" / "review.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["reviewer"] == reviewer]
    return {row["pair"]: (row["decision"], row["rating"], row["reasons"]) for row in rows}


def source_of(page: Page, part: str = "synthetic") -> str:
    source: str = page.locator(f"#{part} img").first.evaluate("image => image.src")
    return source


def test_everything_is_done_by_keys(opened, folder):
    page = opened("Keys")
    assert page.title() == "Review of synthetic pairs", "a name is text"
    expect(page.get_by_role("heading", level=2)).to_have_text(HOSTILE)
    assert page.locator("#synthetic img").first.evaluate("image => image.naturalWidth") > 0
    page.keyboard.press("a")
    shows(page, NAMES[1])
    expect(page.get_by_role("status")).to_have_text(f"{HOSTILE}: accepted. Saved.")
    page.keyboard.press("7")
    page.keyboard.press("9")
    expect(page.get_by_label("Texture")).to_be_checked()
    page.keyboard.press("r")
    shows(page, NAMES[2])
    expect(page.get_by_label("Texture")).not_to_be_checked()
    page.keyboard.press("4")
    shows(page, NAMES[3])
    page.keyboard.press("6")
    page.keyboard.press("2")
    shows(page, NAMES[4])
    assert judged(page) == "4 of 5"
    page.keyboard.press("u")
    shows(page, NAMES[3])
    page.keyboard.press("u")
    shows(page, NAMES[2])
    assert judged(page) == "2 of 5"
    page.keyboard.press("ArrowRight")
    shows(page, NAMES[3])
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    shows(page, NAMES[1])
    expect(page.get_by_label("Artefact")).to_be_checked()
    expect(page.get_by_role("button", name="Reject R")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("n")
    shows(page, NAMES[2])
    expect(page.get_by_role("status")).to_contain_text("undone")
    end = time.monotonic() + 10
    wanted = {HOSTILE: ("accept", "", ""), NAMES[1]: ("reject", "", "texture;artefact")}
    while decided(folder, "Keys") != wanted:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_slices_window_and_mask(opened):
    page = opened("Views")
    start = int(page.locator("#slice").input_value())
    before = source_of(page), source_of(page, "real")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#at")).to_have_text(f"{start + 2} of 12")
    assert f"/synthetic/{start + 1}.png" in source_of(page) and f"/real/{start + 1}.png" in source_of(page, "real")
    page.mouse.move(*middle(page))
    page.mouse.wheel(0, 100)
    page.mouse.wheel(0, -100)
    page.keyboard.press("ArrowDown")
    expect(page.locator("#at")).to_have_text(f"{start + 1} of 12")
    assert (source_of(page), source_of(page, "real")) == before
    page.mouse.down()
    page.mouse.move(middle(page)[0] + 60, middle(page)[1] + 20, steps=3)
    page.mouse.up()
    assert int(page.locator("#width").input_value()) > 100 and int(page.locator("#level").input_value()) > 0
    page.wait_for_function("old => document.querySelector('#synthetic img').src !== old", arg=before[0])
    page.keyboard.press("w")
    page.wait_for_function("old => document.querySelector('#synthetic img').src === old", arg=before[0])
    outline = page.locator("#synthetic img").nth(1)
    expect(outline).to_be_visible()
    page.keyboard.press("m")
    expect(outline).to_be_hidden()
    expect(page.get_by_role("button", name="Mask M")).to_have_attribute("aria-pressed", "false")


def middle(page: Page) -> tuple[float, float]:
    box = page.locator("#synthetic .picture").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_keys_can_be_switched_off_and_do_not_act_while_a_number_is_typed(opened):
    page = opened("Typing")
    page.get_by_label("Pair", exact=True).fill("3")
    page.keyboard.press("Enter")
    shows(page, NAMES[2])
    assert judged(page) == "0 of 5", "3 was no rating"
    page.get_by_label("Keys are active").uncheck()
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Next not judged").click()
    shows(page, NAMES[3])
    assert judged(page) == "0 of 5"


def test_two_reviewers_at_once_have_decisions_of_their_own(opened, browser: Browser, page: Page):
    ada = opened("Ada")
    other = browser.new_context()
    bo = opened("Bo", other.new_page())
    ada.keyboard.press("a")
    bo.keyboard.press("1")
    shows(ada, NAMES[1])
    shows(bo, NAMES[1])
    bo.keyboard.press("u")
    shows(bo, HOSTILE)
    ada.reload()
    shows(ada, NAMES[1])
    assert (judged(ada), judged(bo)) == ("1 of 5", "0 of 5")
    other.close()


def test_a_name_is_asked_for(browser: Browser, address: str):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{address}?reviewer=%3D1")
    expect(page.locator("#status")).to_contain_text("the name of a reviewer begins with a letter")
    page.get_by_label("Your name").fill("Carla")
    page.keyboard.press("Enter")
    shows(page, HOSTILE)
    expect(page.locator("#name")).to_have_text("Carla")
    page.goto(address)
    expect(page.get_by_label("Your name")).to_be_focused()
    context.close()


def test_a_wrong_token_shows_nothing(browser: Browser, address: str):
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(address[:-2] + "/?reviewer=Ada")
    assert answer is not None and answer.status == 404
    assert page.locator("body").inner_text() == '{"message":"not found"}'
    context.close()


def test_nothing_is_lost_when_the_server_is_killed_after_an_acknowledged_decision(browser: Browser, tmp_path: Path):
    pairs = write_pairs(tmp_path, tmp_path / "raw", NAMES[1:])
    context = browser.new_context()
    page = context.new_page()
    with served(pairs, tmp_path / "raw") as server:
        page.goto(f"{server.address}?reviewer=Ada")
        shows(page, NAMES[1])
        page.keyboard.press("8")
        with page.expect_response(lambda response: "decisions" in response.url and response.status == 200) as answer:
            page.keyboard.press("r")
        answer.value.finished()
        server.kill()
    expect(page.locator("#pair")).to_have_text(NAMES[2])
    page.keyboard.press("a")
    expect(page.get_by_role("status")).to_contain_text("Not saved. The server does not answer.")
    expect(page.locator("#pair")).to_have_text(NAMES[2])
    assert judged(page) == "1 of 4", "what was not saved does not count"
    with served(pairs, tmp_path / "raw") as server:
        assert decided(tmp_path, "Ada") == {NAMES[1]: ("reject", "", "boundary")}
        page.goto(f"{server.address}?reviewer=Ada")
        shows(page, NAMES[2])
        assert judged(page) == "1 of 4"
        page.keyboard.press("u")
        shows(page, NAMES[1])
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_readable_everywhere(opened, page: Page, serious_faults: Callable[[Page], list[str]], scheme: str, width: int):
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    opened(f"{scheme}{width}")
    page.keyboard.press("5")
    shows(page, NAMES[1])
    page.keyboard.press("ArrowLeft")
    shows(page, HOSTILE)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious_faults(page) == []
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px", "the focus is visible"


def test_generated_pairs_are_reviewed(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The picture of the how-to page; with GENSEG_PICTURES=docs/images it is made anew."""
    use_threads(monkeypatch)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in (OVERRIDES, EXTERNAL_TRAINERS):
        monkeypatch.setenv(name, "")
    PhantomDataset(910, 3, 5, 1).write(tmp_path / "nnUNet_raw")
    plan(910, "3d_fullres")
    cli.main(["generate", "910", "3d_fullres", "0", "-n", "3", "-o", str(tmp_path / "pairs"), "-device", "cpu"])
    page.set_viewport_size({"width": 760, "height": 640})
    with served(tmp_path / "pairs", tmp_path / "nnUNet_raw", "--host", "127.0.0.2") as server:
        assert "warning: with --host 127.0.0.2 everyone in the network who has the address" in server.errors.read_text()
        page.goto(f"{server.address}?reviewer=Dr Ada")
        shows(page, "synthetic_00000")
        page.keyboard.press("4")
        shows(page, "synthetic_00001")
        page.keyboard.press("8")
        source = json.loads((tmp_path / "pairs" / "provenance.json").read_text())["pairs"]["synthetic_00001"]["cases"][0]
        expect(page.locator("#source")).to_have_text(source)
        path = Path(os.environ.get("GENSEG_PICTURES", tmp_path)) / "review.png"
        page.locator("body").screenshot(path=path)
        page.goto("about:blank")  # the page still loads pictures of other pairs; the server ends now
    assert 10_000 < path.stat().st_size < LARGEST_PICTURE
    assert decided(tmp_path, "Dr Ada") == {"synthetic_00000": ("accept", "4", "")}
