"""Options that several sub-commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from nnunetv2_genseg.cli.checks import PREPROCESSED, RAW, RESULTS, require_device, require_fold, require_set
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES, SETTINGS, external_trainers

DEFAULT_TRAINER = "GenSegTrainer"


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """A preprocessed dataset and its configuration."""
    parser.add_argument(
        "dataset", metavar="DATASET", help="name or number of a dataset that nnU-Net has planned and preprocessed"
    )
    parser.add_argument("configuration", metavar="CONFIGURATION", help="nnU-Net's, such as 2d")


def add_trainer(parser: argparse.ArgumentParser, device: str, use: str) -> None:
    """The trainer, the plans and the device, `device` if none is named; `use` is what is done on it."""
    parser.add_argument("-tr", default=DEFAULT_TRAINER, help="trainer whose preset is used (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default=device, help=f"where to {use} (default: %(default)s)")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.SETTING=VALUE",
        help="one setting, as in `--set deformation.rotation=20`; may be repeated, and overrides the settings file",
    )


def let_trainers_be_found(overrides: Sequence[str]) -> None:
    """Names this package's trainers to nnU-Net and hands them the values of `--set`, also in processes that nnU-Net starts."""
    os.environ[EXTERNAL_TRAINERS] = external_trainers()
    os.environ[OVERRIDES] = "\n".join(overrides)


def prepared(chosen: argparse.Namespace) -> dict[str, Any]:
    """Checks the options of `add_dataset`, `add_trainer` and `add_overrides` and the fold, and lets trainers be found.

    Returns:
        The fields of `trainers.standalone.Standalone` but the output.

    Raises:
        GenSegError: something that the user can correct.
    """
    require_fold(chosen.fold)
    require_set(PREPROCESSED)
    require_device(chosen.device, "-device cpu")
    let_trainers_be_found(chosen.set)
    own = ("dataset", "configuration", "fold", "device")
    return {name: getattr(chosen, name) for name in own} | {"trainer": chosen.tr, "plans": chosen.p}


def prepared_fold(chosen: argparse.Namespace) -> dict[str, Any]:
    """As `prepared`, of a fold that was trained, with the settings of its training.

    Raises:
        GenSegError: something that the user can correct.
    """
    chosen.set = []
    os.environ.pop(SETTINGS, None)
    of_trainer = prepared(chosen)
    require_set(RAW, RESULTS)
    return of_trainer
