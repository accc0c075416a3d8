"""The record beside synthetic pairs: what each was made from, by which a run that was interrupted goes on."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2_genseg import __version__
from nnunetv2_genseg.config import GenSegError, flattened
from nnunetv2_genseg.config.reading import in_form, read_json
from nnunetv2_genseg.files.atomic import PARTIAL, write_text_atomically
from nnunetv2_genseg.files.lock import FILE_NAME as LOCK
from nnunetv2_genseg.trainers.preflight import first_of

FILE_NAME = "provenance.json"
FORMAT = 1
IMAGES, LABELS, DESCRIPTION = "imagesTr", "labelsTr", "dataset.json"
SHARDS = f"shards{PARTIAL}"
"""Folder, beside the pairs, of those that several processes are drawing: a folder like this one for each."""
SAVED_EVERY = 10.0
"""Seconds between two writings of the record. Pairs that a killed run has not recorded are drawn again, to the same bytes."""


def versions(*packages: str) -> dict[str, str]:
    """Versions of this package, of Python and of the packages named, by their names."""
    own = {"nnunetv2_genseg": __version__, "python": platform.python_version()}
    return own | {package: version(package) for package in packages}


def read_record(path: Path, remedy: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What all pairs have in common, and what is known of each pair.

    Args:
        path: of the record.
        remedy: what to do with the record of another version.

    Raises:
        GenSegError: it is of another version, or damaged.
    """
    content = read_json(path, dict[str, Any], "a mapping")
    if content.get("format") != FORMAT or not {"origin", "pairs"} <= content.keys():
        raise GenSegError(f"{path} is not a record of `genseg generate` of this version; {remedy}")
    origin = in_form(content["origin"], dict[str, Any], "a mapping", f"`origin` in {path}")
    return origin, in_form(content["pairs"], dict[str, dict[str, Any]], "a mapping of pairs", f"`pairs` in {path}")


class Provenance:
    """The record of a folder of pairs.

    Args:
        folder: of the pairs; may be missing.
        origin: what all pairs have in common: settings, cases, generator, versions; JSON-like.

    Raises:
        GenSegError: the folder holds files of others, or pairs of another origin.
    """

    def __init__(self, folder: Path, origin: dict[str, Any]) -> None:
        self.folder = folder
        self.origin: dict[str, Any] = json.loads(json.dumps(origin))
        self.pairs: dict[str, dict[str, Any]] = {}
        """What is known of each complete pair, by its name."""
        self._saved = -SAVED_EVERY
        path = folder / FILE_NAME
        if not path.is_file():
            require_own(folder)
            return
        there, pairs = read_record(path, "choose another folder")
        self._require_same(there)
        self.pairs = {name: pair for name, pair in pairs.items() if self._is_whole(pair)}

    def _require_same(self, there: dict[str, Any]) -> None:
        here, there = flattened(self.origin), flattened(there)
        other = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
        if other:
            told = "\n  ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} now" for key in other[:10])
            raise GenSegError(
                f"{self.folder} holds pairs of another origin:\n  {told}\nGo on with what it was begun with, or choose "
                "another folder"
            )

    def _is_whole(self, pair: dict[str, Any]) -> bool:
        files = in_form(pair.get("files"), dict[str, int], "a mapping of files to bytes", f"`files` in {self.folder / FILE_NAME}")
        return all((self.folder / name).is_file() and (self.folder / name).stat().st_size == size for name, size in files.items())

    def add(self, name: str, pair: Mapping[str, Any], files: list[str]) -> None:
        """Records a pair whose files, named relative to the folder, are in place."""
        sizes = {file: (self.folder / file).stat().st_size for file in files}
        self.pairs[name] = {**pair, "files": sizes}
        if time.monotonic() >= self._saved + SAVED_EVERY:
            self.save()

    def take(self, other: Provenance) -> None:
        """Moves the pairs of another folder, on the same file system, into this one.

        Raises:
            GenSegFileError: the record cannot be written; what is not recorded is drawn again.
        """
        for name, pair in other.pairs.items():
            for file in pair["files"]:
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(other.folder / file, self.folder / file)
            self.pairs[name] = pair
        self.save()

    def save(self) -> None:
        """Writes the record.

        Raises:
            GenSegFileError: it cannot be written; the older one is intact.
        """
        pairs = {name: self.pairs[name] for name in sorted(self.pairs)}
        content = {"format": FORMAT, "origin": self.origin, "pairs": pairs}
        write_text_atomically(json.dumps(content, indent=1) + "\n", self.folder / FILE_NAME)
        self._saved = time.monotonic()


def require_own(folder: Path) -> None:
    """Raises GenSegError if a folder holds files and is none of pairs."""
    strangers = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    strangers = sorted(name for name in strangers if name != LOCK and not name.endswith(PARTIAL))
    if strangers and FILE_NAME not in strangers:
        raise GenSegError(
            f"{folder} holds files that `genseg generate` did not write ({first_of(strangers)}); name a new folder, an empty "
            "one, or that of an interrupted run"
        )
