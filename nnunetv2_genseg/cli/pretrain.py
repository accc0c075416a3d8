"""`genseg pretrain`: trains a generator alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_genseg.cli.checks import preprocessed
from nnunetv2_genseg.cli.options import add_dataset, add_overrides, add_trainer, prepared


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        prog="genseg pretrain",
        description="Trains a generator alone, for trainings to start from: set generator.pretrained to OUTPUT_FOLDER.",
        allow_abbrev=False,
    )
    add_dataset(options)
    options.add_argument("output", metavar="OUTPUT_FOLDER", type=Path, help="where the generator is written")
    add_trainer(options, "cuda", "train")
    options.add_argument(
        "-f", dest="fold", metavar="F", default="all", help="fold whose training cases are used (default: all cases)"
    )
    options.add_argument("--iterations", type=int, default=10_000, help="steps of the generator (default: %(default)s)")
    options.add_argument(
        "--images",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="raw images named CASE_0000.EXT with the dataset's channels, used without labels; preprocessed once, beside the "
        "dataset",
    )
    add_overrides(options)
    return options


def run(arguments: Sequence[str]) -> None:
    """Trains the generator.

    Raises:
        GenSegError: the dataset was not preprocessed, or something else that a user can correct.
    """
    chosen = parser().parse_args(arguments)
    of_trainer = prepared(chosen)
    from nnunetv2_genseg.trainers import pretraining
    from nnunetv2_genseg.trainers.guarding import ending_on_sigterm

    settings = pretraining.Pretraining(
        **of_trainer, output=chosen.output, iterations=chosen.iterations, images=tuple(chosen.images)
    )
    # after SIGTERM the temporary folder is removed, as after an error
    with ending_on_sigterm(), preprocessed(chosen.dataset):
        pretraining.pretrain(settings)
