"""A self-contained HTML page of pictures: one file, which needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, p, td { overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: white; }
table { border-collapse: collapse; }
td, th { border-bottom: 1px solid #8888; padding: .2rem 1rem .2rem 0; text-align: left; }
"""


@dataclass(frozen=True)
class Section:
    """A heading, what is said under it, and a picture."""

    title: str
    text: str
    picture: Path | None = None
    """A PNG, which is put into the page."""


def write_page(path: Path, title: str, remarks: Sequence[str], sections: Sequence[Section], settings: Mapping[str, str]) -> Path:
    """Writes the page; returns its path.

    Args:
        path: of the HTML file.
        title: its heading.
        remarks: paragraphs under it.
        sections: in their order.
        settings: name and value of what differs from the defaults, at the end.
    """
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(remark)}</p>" for remark in remarks)]
    for section in sections:
        parts += [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
        if section.picture is not None:
            content = base64.b64encode(section.picture.read_bytes()).decode()
            parts.append(f'<img alt="{escape(section.title)}" src="data:image/png;base64,{content}">')
    parts.append("<h2>Settings</h2>")
    rows = "".join(f"<tr><td><code>{escape(name)}</code></td><td>{escape(value)}</td></tr>" for name, value in settings.items())
    parts.append(f"<table><tr><th>setting</th><th>value</th></tr>{rows}</table>" if rows else "<p>All are the defaults.</p>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
    return path
