"""The page of `genseg report`: settings, curves, a gallery of pairs and tables, each with its data to download."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from nnunetv2_genseg.plots.curves import Curves
from nnunetv2_genseg.plots.gallery import Strip
from nnunetv2_genseg.plots.page import csv_of, render
from nnunetv2_genseg.plots.values import MEANINGS

LARGEST = 20_000_000
"""Bytes of the file, at most."""
FOR_PICTURES = 17_000_000
"""Of these, bytes of the pictures of pairs, at most."""
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, head and rows."""


@dataclass(frozen=True)
class Item:
    """A pair in the gallery, beside a real case."""

    pair: str
    case: str
    caption: str


@dataclass(frozen=True)
class View:
    """Pairs in an order."""

    title: str
    note: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Content:
    """All that the page shows."""

    title: str
    facts: Mapping[str, str]
    """What was used, by name."""
    settings: Mapping[str, str]
    """Those that differ from the defaults."""
    curves: Sequence[Curves]
    views: Sequence[View]
    pictures: Mapping[str, Strip]
    """Of `pair NAME` and `case NAME`, for all pairs and cases in the views."""
    labels: Sequence[tuple[str, str]]
    """Names of labels and the colours of their outlines."""
    of_pairs: Sequence[str]
    """What is said above the gallery."""
    tables: Sequence[Table]
    of_quality: Sequence[str]
    """What is said above the tables."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further data to download: content by file name."""


def page_of(content: Content) -> str:
    """The HTML text.

    Raises:
        RuntimeError: it is larger than `LARGEST`.
    """
    text = render(
        "report.html",
        title=content.title,
        remarks=[],
        facts=content.facts,
        settings=content.settings,
        curves=[_panel(curves) for curves in content.curves],
        views=[asdict(view) for view in content.views],
        pictures=content.pictures,
        labels=content.labels,
        of_pairs=content.of_pairs,
        tables=[_table(*table) for table in content.tables],
        of_quality=content.of_quality,
        files=content.files,
    )
    size = len(text.encode())
    if size > LARGEST:
        raise RuntimeError(f"the report has {size} bytes, more than {LARGEST}")
    return text


def _panel(curves: Curves) -> dict[str, object]:
    meanings = {name: MEANINGS[name].replace("`", "") for name in curves.lines if name in MEANINGS}
    of: dict[str, object] = {"title": curves.title, "svg": curves.as_svg(), "legend": curves.legend, "meanings": meanings}
    return of | {"csv": curves.as_csv(), "file": f"{_stem(curves.title)}.csv"}


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, object]:
    return {"title": title, "head": head, "rows": rows, "csv": csv_of(head, rows), "file": f"{_stem(title)}.csv"}


def _stem(title: str) -> str:
    """A file name made of the first words of a title."""
    return "_".join(re.findall(r"[a-z0-9]+", title.lower())[:6])
