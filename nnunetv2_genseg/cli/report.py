"""`genseg report`: a page about a training and its pairs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunetv2_genseg.cli.checks import quietly_preprocessed
from nnunetv2_genseg.cli.options import add_dataset, add_trainer, prepared_fold

FILE = "genseg_report.html"
PAIRS = 12
"""Pairs that are drawn if no folder is named."""


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        prog="genseg report",
        description="Writes one HTML file about a trained fold: settings, curves, pairs and their figures.",
        allow_abbrev=False,
    )
    add_dataset(options)
    options.add_argument("fold", metavar="FOLD", help="a trained fold, or `all`")
    options.add_argument("-o", metavar="FILE", type=Path, default=Path(FILE), help="the page (default: %(default)s)")
    pairs = options.add_mutually_exclusive_group()
    pairs.add_argument(
        "--pairs",
        metavar="FOLDER",
        type=Path,
        help="pairs that `genseg generate` wrote, with the figures of `genseg quality` if these are there",
    )
    pairs.add_argument("-n", metavar="N", type=int, default=PAIRS, help="pairs to draw and judge else (default: %(default)s)")
    add_trainer(options, "cuda", "draw and judge")
    return options


def run(arguments: Sequence[str]) -> None:
    """Writes the page and prints where it is.

    Raises:
        GenSegError: the fold was not trained, or something else that a user can correct.
    """
    chosen = parser().parse_intermixed_args(arguments)
    of_trainer = prepared_fold(chosen)
    from nnunetv2_genseg.trainers import reporting
    from nnunetv2_genseg.trainers.guarding import ending_on_sigterm

    where = {"output": chosen.o.parent, "name": chosen.o.name}
    settings = reporting.Reporting(**of_trainer, **where, count=chosen.n, pairs=chosen.pairs)
    with ending_on_sigterm(), quietly_preprocessed(chosen.dataset):
        path = reporting.report(settings, partial(print, "genseg:", file=sys.stdout, flush=True))
    print(f"The report is {path}; open it in a browser")
