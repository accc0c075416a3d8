"""Presets: one-hook subclasses whose name is the command-line argument."""

from __future__ import annotations

from typing import ClassVar

from nnunetv2_genseg.config import Settings
from nnunetv2_genseg.trainers.genseg_trainer import GenSegTrainer

SHORT_TRAININGS = (5, 50, 100, 250)


class GenSegTrainerNoFeedback(GenSegTrainer):
    """The generator learns from the real pairs alone, and no case is held aside."""

    preset: ClassVar[Settings] = {"feedback": {"enabled": False}}


class GenSegTrainerGMM(GenSegTrainer):
    """Images from a Gaussian mixture around the dataset's own intensities; feedback moves the drawing policy."""

    preset: ClassVar[Settings] = {
        "generator": {"name": "gmm"},
        "conditioning": {"mode": "tissue"},
        "feedback": {"parameters": "policy"},
    }


class GenSegTrainerDiffusion(GenSegTrainer):
    """Images by flow matching in a few steps; feedback moves the weights, for in 2D the network has no architecture.

    Three eighths of the default width, so that drawing a pair takes less than two forward passes of the segmenter.
    """

    preset: ClassVar[Settings] = {"generator": {"name": "diffusion", "width": 0.1875}, "feedback": {"parameters": "weights"}}


class GenSegTrainerVAE(GenSegTrainer):
    """Images from a conditional variational autoencoder."""

    preset: ClassVar[Settings] = {"generator": {"name": "vae"}}


def _short(epochs: int) -> type[GenSegTrainer]:
    name = f"GenSegTrainer_{epochs}epochs"
    members = {"__module__": __name__, "__doc__": f"GenSegTrainer for {epochs} epochs.", "preset_epochs": epochs}
    return type(name, (GenSegTrainer,), members)


globals().update({trainer.__name__: trainer for trainer in map(_short, SHORT_TRAININGS)})

__all__ = [
    "GenSegTrainerDiffusion",
    "GenSegTrainerGMM",
    "GenSegTrainerNoFeedback",
    "GenSegTrainerVAE",
    *(f"GenSegTrainer_{epochs}epochs" for epochs in SHORT_TRAININGS),
]
