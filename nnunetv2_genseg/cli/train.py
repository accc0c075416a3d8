"""`genseg train`: nnU-Net's own `nnUNetv2_train`, with this package's trainers found."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_genseg.cli.checks import (
    PREPROCESSED,
    RESULTS,
    preprocessed,
    require_device,
    require_fold,
    require_gpus,
    require_set,
)
from nnunetv2_genseg.cli.options import DEFAULT_TRAINER, add_overrides, let_trainers_be_found


def parser() -> argparse.ArgumentParser:
    """The options that are not nnU-Net's."""
    own = argparse.ArgumentParser(
        prog="genseg train",
        usage="genseg train DATASET CONFIGURATION FOLD [--unlabelled FOLDER ...] [--set SECTION.SETTING=VALUE] "
        "[options of nnUNetv2_train]",
        description="Trains with -tr GenSegTrainer, unless another trainer is named.",
        epilog="All other arguments are those of nnUNetv2_train.",
        add_help=False,
        allow_abbrev=False,
    )
    own.add_argument(
        "--unlabelled",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="raw images named CASE_0000.EXT with the dataset's channels, from which pairs are made as well; the same as "
        "`--set unlabelled.images=[FOLDER, ...]`. They are preprocessed once, beside the dataset",
    )
    add_overrides(own)
    return own


def run(arguments: Sequence[str]) -> None:
    """Trains.

    Raises:
        GenSegError: the dataset was not preprocessed, or something else that a user can correct.
    """
    own = parser()
    chosen, rest = own.parse_known_args(arguments)
    nnunets = argparse.ArgumentParser(prog="genseg train", add_help=False, argument_default="")
    nnunets.add_argument("positional", nargs="*")
    for option in ("-tr", "-p", "-pretrained_weights", "-num_gpus", "-device"):
        nnunets.add_argument(option)
    known, _ = nnunets.parse_known_intermixed_args(rest)
    if len(known.positional) >= 3:  # nnU-Net says itself what is missing
        require_fold(known.positional[2])
        require_set(PREPROCESSED, RESULTS)
        require_device(known.device or "cuda", "-device cpu")
        require_gpus(known.num_gpus)
    if "-h" in rest or "--help" in rest:
        print(own.format_help())
    images = json.dumps([str(folder.resolve()) for folder in chosen.unlabelled])
    let_trainers_be_found(chosen.set + [f"unlabelled.images={images}"] * bool(chosen.unlabelled))
    from nnunetv2.run.run_training import run_training_entry

    from nnunetv2_genseg.trainers.guarding import ending_on_sigterm

    sys.argv = ["nnUNetv2_train", *rest, *([] if known.tr else ["-tr", DEFAULT_TRAINER])]
    _limit_threads()
    with ending_on_sigterm(), preprocessed(known.positional[0] if known.positional else ""):
        run_training_entry()


def _limit_threads() -> None:
    """Makes OMP_NUM_THREADS hold on the CPU, too, where nnU-Net asks for the number of cores and takes that many threads."""
    number = os.environ.get("OMP_NUM_THREADS", "")
    if number.isdigit() and int(number) > 0:
        multiprocessing.cpu_count = lambda: int(number)
