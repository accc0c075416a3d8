"""`genseg quality`: judges written pairs by figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_genseg.cli.checks import quietly_preprocessed
from nnunetv2_genseg.cli.options import add_dataset, add_trainer, prepared_fold


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        prog="genseg quality",
        description="Compares pairs that `genseg generate` wrote with the real cases of their fold: tables and quality.json.",
        allow_abbrev=False,
    )
    add_dataset(options)
    options.add_argument("fold", metavar="FOLD", help="fold that the pairs were made from; its trained network judges")
    options.add_argument("folder", metavar="FOLDER", type=Path, help="folder that `genseg generate` wrote")
    options.add_argument("-o", metavar="OUT", type=Path, help="folder for quality.json (default: FOLDER)")
    options.add_argument("-n", metavar="N", type=int, help="judges the first N pairs (default: all)")
    options.add_argument(
        "--features",
        metavar="MODULE:FUNCTION",
        help="Python function from images, (N, C, ...), to features, (N, D), for KID, FID and distances (default: the network's)",
    )
    add_trainer(options, "cuda", "judge")
    return options


def run(arguments: Sequence[str]) -> None:
    """Writes the figures, and prints them as tables.

    Raises:
        GenSegError: the fold was not trained, or something else that a user can correct.
    """
    chosen = parser().parse_intermixed_args(arguments)
    of_trainer = prepared_fold(chosen)
    from nnunetv2_genseg.quality.table import as_text
    from nnunetv2_genseg.trainers import judging

    output = chosen.folder if chosen.o is None else chosen.o
    settings = judging.Judgement(**of_trainer, output=output, folder=chosen.folder, most=chosen.n, features=chosen.features)
    with quietly_preprocessed(chosen.dataset):
        content = judging.judge(settings)
    print(as_text(content))
    print(f"\nAll figures are in {output / judging.FILE_NAME}")
