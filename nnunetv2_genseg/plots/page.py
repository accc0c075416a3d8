"""Self-contained HTML pages: one file, which needs no other and no network. Their templates are in `templates/`."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunetv2_genseg.files.atomic import write_text_atomically


def data_uri(content: str | bytes, kind: str) -> str:
    """A link that holds its content, of the MIME type `kind`."""
    held = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(held).decode()}"


def csv_of(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


_templates = Environment(
    loader=PackageLoader("nnunetv2_genseg.plots"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["data_uri"] = data_uri


def render(template: str, **content: Any) -> str:
    """The text of a page; everything that it is given is escaped."""
    return _templates.get_template(template).render(content)


@dataclass(frozen=True)
class Section:
    """A heading, what is said under it, and a picture."""

    title: str
    text: str
    picture: Path | None = None
    """A PNG, which is put into the page."""


def write_page(path: Path, title: str, remarks: Sequence[str], sections: Sequence[Section], settings: Mapping[str, str]) -> Path:
    """Writes a page of pictures; returns its path.

    Args:
        path: of the HTML file.
        title: its heading.
        remarks: paragraphs under it.
        sections: in their order.
        settings: name and value of what differs from the defaults, at the end.
    """
    pictures = {part.title: data_uri(part.picture.read_bytes(), "image/png") for part in sections if part.picture is not None}
    content = {"title": title, "remarks": remarks, "sections": sections, "settings": settings, "pictures": pictures}
    write_text_atomically(render("preview.html", **content), path)
    return path
