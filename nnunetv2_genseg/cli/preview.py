"""`genseg preview`: shows synthetic pairs of a preprocessed dataset before any training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_genseg.cli.checks import quietly_preprocessed
from nnunetv2_genseg.cli.options import add_dataset, add_overrides, add_trainer, prepared

FOLDER = "genseg_preview"


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        prog="genseg preview",
        description="Draws synthetic pairs from a preprocessed dataset, without any training: pictures and an HTML page.",
        allow_abbrev=False,
    )
    add_dataset(options)
    options.add_argument(
        "fold", metavar="FOLD", nargs="?", default="all", help="fold whose training cases are shown (default: all cases)"
    )
    options.add_argument(
        "-o", metavar="FOLDER", type=Path, default=Path(FOLDER), help="where it is written (default: %(default)s)"
    )
    options.add_argument("--pairs", type=int, default=6, help="pairs of each source (default: %(default)s)")
    add_trainer(options, "cpu", "draw")
    add_overrides(options)
    return options


def run(arguments: Sequence[str]) -> None:
    """Draws pairs and prints where the page is.

    Raises:
        GenSegError: the dataset was not preprocessed, or something else that a user can correct.
    """
    chosen = parser().parse_intermixed_args(arguments)
    of_trainer = prepared(chosen)
    from nnunetv2_genseg.trainers import previewing

    settings = previewing.Preview(**of_trainer, output=chosen.o, pairs=chosen.pairs)
    with quietly_preprocessed(chosen.dataset):
        page = previewing.preview(settings)
    print(f"The page is {page}")
