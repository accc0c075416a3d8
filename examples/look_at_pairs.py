"""Draws pairs of a preprocessed dataset with several settings, a folder each: `genseg preview` from Python.

nnU-Net's environment variables must be set, and the dataset planned and preprocessed.

python examples/look_at_pairs.py DATASET CONFIGURATION OUTPUT_FOLDER
"""

import sys
from pathlib import Path

from nnunetv2_genseg.cli import main

SETTINGS = {
    "gentle": ["deformation.rotation=10", "deformation.scaling=0.1"],
    "default": [],
    "strong": ["deformation.rotation=60", "deformation.displacement=0.08"],
}


def compare(dataset: str, configuration: str, output: Path) -> list[Path]:
    """Draws all; returns the pages."""
    pages = []
    for name, values in SETTINGS.items():
        folder = output / name
        main(["preview", dataset, configuration, "-o", str(folder), *(part for value in values for part in ("--set", value))])
        pages.append(folder / "index.html")
    return pages


if __name__ == "__main__":
    compare(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
