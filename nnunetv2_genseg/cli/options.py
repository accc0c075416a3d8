"""Options that several sub-commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from nnunetv2_genseg.config.environment import OVERRIDES

DEFAULT_TRAINER = "GenSegTrainer"


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """A preprocessed dataset and its configuration."""
    parser.add_argument(
        "dataset", metavar="DATASET", help="name or number of a dataset that nnU-Net has planned and preprocessed"
    )
    parser.add_argument("configuration", metavar="CONFIGURATION", help="nnU-Net's, such as 2d")


def add_trainer(parser: argparse.ArgumentParser) -> None:
    """The trainer and the plans."""
    parser.add_argument("-tr", default=DEFAULT_TRAINER, help="trainer whose preset is used (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", help="name of the plans (default: %(default)s)")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.SETTING=VALUE",
        help="one setting, as in `--set deformation.rotation=20`; may be repeated, and overrides the settings file",
    )


def apply_overrides(overrides: Sequence[str]) -> None:
    """Hands the values of `--set` to the trainers, also to those in processes that nnU-Net starts."""
    os.environ[OVERRIDES] = "\n".join(overrides)
