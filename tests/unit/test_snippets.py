"""Every snippet of every page: Python runs, settings are valid, commands are accepted by the programs that they call."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import yaml

from nnunetv2_genseg.cli import train
from nnunetv2_genseg.cli.main import WITH_OPTIONS, WITHOUT_OPTIONS
from nnunetv2_genseg.config import GenSegConfig, checked
from nnunetv2_genseg.config.loading import overrides
from nnunetv2_genseg.generators import GENERATORS
from nnunetv2_genseg.sweep.plan import Plan
from nnunetv2_genseg.synthesis.modes import MODES
from nnunetv2_genseg.synthesis.sources import PAIR_SOURCES
from nnunetv2_genseg.trainers.batches import SPATIAL_ENTRIES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
NNUNETS = {point.name: point for point in entry_points(group="console_scripts") if point.name.startswith("nnUNetv2_")}
WITHOUT_A_CHECK = ("export", "eval", "wait", "pip", "pre-commit", "ray", ".")
"""What the shell, or a program that is not part of this project, does."""


class Snippet(NamedTuple):
    page: str
    language: str
    text: str


def snippets(language: str | None = None) -> list[Snippet]:
    found = []
    for page in PAGES:
        for name, text in FENCE.findall(page.read_text(encoding="utf-8")):
            whole = INCLUDED.sub(lambda path: (ROOT / path[1]).read_text(encoding="utf-8"), text)
            found.append(Snippet(str(page.relative_to(ROOT)), name, whole))
    return [snippet for snippet in found if language is None or snippet.language == language]


def test_every_snippet_has_a_language_that_is_checked():
    languages = {snippet.language for snippet in snippets()}
    assert languages == {"bash", "python", "yaml", "json", "toml", "text"}


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch):
    """What snippets register is forgotten afterwards."""
    for registry in (GENERATORS, MODES, PAIR_SOURCES):
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    with mock.patch.dict(SPATIAL_ENTRIES):
        yield


@pytest.mark.parametrize("page", sorted({snippet.page for snippet in snippets("python")}))
def test_python_runs_in_the_order_of_its_page(page: str, registries: None):
    namespace = {"__name__": "page"}
    for snippet in snippets("python"):
        if snippet.page == page:
            exec(compile(snippet.text, page, "exec"), namespace)


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=lambda snippet: snippet.page)
def test_settings_are_valid(snippet: Snippet):
    content = yaml.safe_load(snippet.text)
    checked(Plan if "datasets" in content else GenSegConfig, content, snippet.page)


@pytest.mark.parametrize("snippet", snippets("json"), ids=lambda snippet: snippet.page)
def test_dataset_descriptions_are_nnunets(snippet: Snippet):
    assert json.loads(snippet.text).keys() == {"channel_names", "labels", "numTraining", "file_ending"}


@pytest.mark.parametrize("snippet", snippets("toml"), ids=lambda snippet: snippet.page)
def test_entry_points_are_in_the_group_of_a_registry(snippet: Snippet):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    groups = tomllib.loads(snippet.text)["project"]["entry-points"]
    assert set(groups) <= {registry.package for registry in (GENERATORS, MODES, PAIR_SOURCES)}


# ---------------------------------------------------------------------- commands


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command; of a loop, what it repeats."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.sub(r"\s#.*", "", line).split("; "):
            words = shlex.split(part.replace("$fold", "0").replace("$(", "(").replace("$", ""))
            if words[:1] == ["do"]:
                words = words[1:]
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            words = words[:-1] if words[-1:] == ["&"] else words
            if words and words[0] not in ("for", "done"):
                yield words


class AcceptedError(Exception):
    """A program has read its arguments without complaint."""


def accepted_by_nnunet(program: str, arguments: list[str]) -> bool:
    """Whether the program of nnU-Net, stopped once it has read its arguments, takes them."""
    parse = argparse.ArgumentParser.parse_args

    def read(self: argparse.ArgumentParser, *given: object, **options: object) -> None:
        parse(self, *given, **options)
        raise AcceptedError

    run = NNUNETS[program].load()
    stopped = mock.patch.object(argparse.ArgumentParser, "parse_args", read)
    with stopped, mock.patch.object(sys, "argv", [program, *arguments]), pytest.raises(AcceptedError):
        run()
    return True


def accepted_by_genseg(name: str, arguments: list[str]) -> bool:
    """Whether `genseg NAME` takes the arguments, and whether the settings in them are valid."""
    if name in WITHOUT_OPTIONS:
        return not arguments
    parser = WITH_OPTIONS[name].parser()
    if name == "train":
        chosen, rest = train.parser().parse_known_args(arguments)
        assert accepted_by_nnunet("nnUNetv2_train", rest)
    else:
        chosen = parser.parse_intermixed_args(arguments)
    checked(GenSegConfig, overrides(getattr(chosen, "set", [])), "--set")
    return True


def is_accepted(words: list[str]) -> bool:
    program, arguments = words[0], words[1:]
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return all("=" in word or word in targets for word in arguments)
    if program == "genseg":
        return accepted_by_genseg(arguments[0], arguments[1:])
    if program in NNUNETS:
        return accepted_by_nnunet(program, arguments)
    if Path(program).name in ("python", "python3"):
        return arguments[0] == "-m" or (ROOT / arguments[0]).is_file()
    return program in WITHOUT_A_CHECK


@pytest.mark.parametrize("snippet", snippets("bash"), ids=lambda snippet: snippet.page)
def test_commands_are_accepted(snippet: Snippet):
    with mock.patch.dict(os.environ):
        for words in commands(snippet.text):
            assert is_accepted(words), shlex.join(words)


@pytest.mark.parametrize(
    "wrong", ["genseg train 1 2d 0 --fast", "genseg preview 1 2d --set seed=x", "make tea", "python none.py", "ls"]
)
def test_a_wrong_command_is_noticed(wrong: str):
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        assert is_accepted(shlex.split(wrong))


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_of_pages_beside_the_site_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
