"""The generated reference is complete: every setting, trainer, command, file, value and message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toy import CODECS, CPU, FAMILIES, Setting, configured, planned, real_pairs

from nnunetv2_genseg import trainers
from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.config import GenSegConfig
from nnunetv2_genseg.plots.progress import OF_UNLABELLED, PREFERRED, SHARE
from nnunetv2_genseg.plots.values import MEANINGS
from tests.bad_inputs import TABLE

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(DOCS / "site"))
        import reference
    return {name: page() for name, page in reference.PAGES.items()}


def first_cells(page: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def test_every_setting_has_a_line_with_its_bounds_and_meaning(pages):
    page = pages["reference/settings.md"]
    cells, keys = first_cells(page), GenSegConfig().flat()
    for key in keys:
        assert any(f"{key}.".startswith(f"{cell}.") for cell in cells), key  # weights by name stand in one line
    for cell in cells:
        assert any(f"{key}.".startswith(f"{cell}.") for key in keys), cell
    assert "| `deformation.rotation` | `30.0` | number, ≥ 0, ≤ 180 | Largest rotation, in degrees. |" in page
    assert "`architecture`, `weights`, `policy`" in page
    assert "| None |" not in page, "every setting has a docstring"


def test_every_trainer_has_a_line(pages):
    expected = {name for name in trainers.__all__ if name != "GenSegMixin"}
    assert set(first_cells(pages["reference/trainers.md"])) == expected


def test_every_command_shows_its_options(pages):
    page = pages["reference/commands.md"]
    assert re.findall("^## genseg (.*)$", page, re.MULTILINE) == [
        "train",
        "sweep",
        "preview",
        "pretrain",
        "generate",
        "quality",
        "report",
        "review",
        "demo",
        "env",
        "generators",
    ]
    assert page.count("--set SECTION.SETTING=VALUE") >= 4


def test_files_are_named_with_their_content(pages):
    found = set(first_cells(pages["reference/files.md"]))
    assert {
        "genseg_config.json",
        "genseg_split.json",
        "genseg_unlabelled.json",
        "genseg_review.json",
        "genseg_samples.png",
        "genseg_progress.png",
        "nnUNet_genseg_config",
    } <= found


def test_every_message_of_the_table_is_there(pages):
    assert all(bad.name in pages["reference/messages.md"] for bad in TABLE)
    assert pages["reference/messages.md"].count("\n| ") == len(TABLE) + 2


def logged(family: str) -> set[str]:
    """Names that a training with a family logs, but for those of the feedback."""
    settings = configured(
        mixing={"sources": {"redraw": 1.0}},
        generator={"name": family},
        masks={"source": "shape_vae"},
        feedback={"enabled": False},
    )
    codec = CODECS["labels"]
    loop = BilevelLoop(settings, planned(2), codec, 1, CPU)
    image, labels = real_pairs(codec, 2, 1)
    loop.training_step(image, labels)
    loop.sample(image, labels, None, loop.choose(len(image), 1.0))
    return set(loop.means())


def test_every_logged_value_has_its_meaning():
    found = {SHARE, PREFERRED, *OF_UNLABELLED}.union(*(logged(family) for family in FAMILIES))
    for parameters in ("architecture", "policy"):
        setting = Setting(feedback={"parameters": parameters})
        setting.feedback()
        found |= set(setting.loop.means())
    assert found == set(MEANINGS)
