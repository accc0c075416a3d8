"""Trains a fold from Python instead of the command line, with settings of the script's own.

nnU-Net's environment variables must be set, and the dataset planned and preprocessed.

python examples/train_from_python.py DATASET CONFIGURATION FOLD
"""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import torch
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunetv2_genseg.trainers import GenSegTrainer


class GentleTrainer(GenSegTrainer):
    """Less rotation than the default, and only five epochs: a training is a class, like any trainer of nnU-Net."""

    preset: ClassVar = {"deformation": {"rotation": 10.0}}
    preset_epochs = 5


def train(dataset: str, configuration: str, fold: str, trainer_class: type[GenSegTrainer] = GentleTrainer) -> Path:
    """Trains and validates; returns the fold's folder."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / maybe_convert_to_dataset_name(dataset)
    trainer = trainer_class(
        plans=json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False},
        configuration=configuration,
        fold=fold if fold == "all" else int(fold),
        dataset_json=json.loads((folder / "dataset.json").read_text()),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    trainer.run_training()
    trainer.perform_actual_validation()
    return Path(trainer.output_folder)


if __name__ == "__main__":
    print(train(*sys.argv[1:4]))
