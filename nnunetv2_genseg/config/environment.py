"""The environment variables that connect this package with nnU-Net."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

EXTERNAL_TRAINERS = "nnUNet_extTrainer"
"""nnU-Net looks for trainers in the folders that this variable names."""
SETTINGS = "nnUNet_genseg_config"
"""Names the JSON or YAML file with a user's settings."""
OVERRIDES = "nnUNet_genseg_set"
"""Single settings, one `section.setting=value` a line: what `--set` on the command line hands to the trainers."""
LENGTH = "nnUNet_genseg_short"
"""Length of a short training: `epochs,iterations,validation iterations,epochs between checkpoints,seed`."""


def discovery_folder() -> Path:
    """The folder that `nnUNet_extTrainer` must name."""
    return Path(str(files("nnunetv2_genseg") / "discovery"))


def external_trainers() -> str:
    """The value of `nnUNet_extTrainer` with this package's folder, after the folders that are there already."""
    there = [path for path in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if path]
    own = str(discovery_folder())
    return os.pathsep.join([*(path for path in there if path != own), own])
