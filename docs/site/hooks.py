"""What mkdocs does beside its own: adds the generated pages, and makes formulas MathML, which browsers draw without a script."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

from reference import PAGES, ROOT

ARCHIVE = "benchmarks/results/archive/README.md"
FORMULA = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Adds the reference, and the page of archived results, which lies beside them."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    archive = (ROOT / ARCHIVE).read_text(encoding="utf-8")
    files.append(File.generated(config, "archive.md", content=archive))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the archive as a page, and formulas."""
    markdown = markdown.replace(f"../{ARCHIVE}", "archive.md")
    return FORMULA.sub(lambda found: latex2mathml.converter.convert(found[1].strip(), display="block"), markdown)
