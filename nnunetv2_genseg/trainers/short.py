"""Trainings of any length, set by an environment variable: for the demo, the benchmarks and the end-to-end tests."""

from __future__ import annotations

import os
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.environment import LENGTH
from nnunetv2_genseg.trainers.genseg_trainer import GenSegTrainer, GenSegTrainerDA5


class ShortTraining(nnUNetTrainer):
    """Takes the length of the training, and the seed of the network's initial weights, from `nnUNet_genseg_short`."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        numbers = os.environ.get(LENGTH, "").split(",")
        if len(numbers) != 5 or not all(number.strip().isdigit() for number in numbers):
            raise GenSegError(
                f"{type(self).__name__} takes its length from {LENGTH}: five whole numbers, epochs, iterations, validation "
                f"iterations, epochs between checkpoints and seed, as in 10,50,5,5,0; found {os.environ.get(LENGTH)!r}"
            )
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch, self.save_every, seed = map(
            int, numbers
        )
        torch.manual_seed(seed)


class nnUNetTrainerShort(ShortTraining):  # noqa: N801
    """nnU-Net's default trainer for as long as `nnUNet_genseg_short` says."""


class nnUNetTrainerDA5Short(ShortTraining, nnUNetTrainerDA5):  # noqa: N801
    """nnU-Net's trainer with its stronger augmentation for as long as `nnUNet_genseg_short` says."""


class GenSegTrainerShort(ShortTraining, GenSegTrainer):
    """GenSegTrainer for as long as `nnUNet_genseg_short` says."""


class GenSegTrainerDA5Short(ShortTraining, GenSegTrainerDA5):
    """GenSegTrainerDA5 for as long as `nnUNet_genseg_short` says."""


__all__ = ["GenSegTrainerDA5Short", "GenSegTrainerShort", "nnUNetTrainerDA5Short", "nnUNetTrainerShort"]
