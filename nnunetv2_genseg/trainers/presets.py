"""Preset trainers: subclasses of GenSegTrainer with other settings or lengths, chosen by `-tr NAME`."""

from __future__ import annotations

from typing import ClassVar

from nnunetv2_genseg.config import Settings
from nnunetv2_genseg.trainers.genseg_trainer import GenSegTrainer


class GenSegTrainerNoFeedback(GenSegTrainer):
    """The generator learns from the real pairs alone, and no case is held out."""

    preset: ClassVar[Settings] = {"feedback": {"enabled": False}}


class GenSegTrainerNoGenerator(GenSegTrainer):
    """Pairs by pasting and deformation of real ones: no generator and no feedback, the least time."""

    preset: ClassVar[Settings] = {"mixing": {"sources": {"deformation": 1.0}}, "feedback": {"enabled": False}}


class GenSegTrainerGMM(GenSegTrainer):
    """Images from a Gaussian mixture around the dataset's own intensities. The feedback moves the sampling policy."""

    preset: ClassVar[Settings] = {
        "generator": {"name": "gmm"},
        "redraw": {"mode": "tissue"},
        "feedback": {"parameters": "policy"},
    }


class GenSegTrainerDiffusion(GenSegTrainer):
    """Images by flow matching in a few steps. The feedback moves the weights, since the 2D network has no architecture.

    Three eighths of the default width, so that sampling a pair takes less time than two forward passes of the segmenter.
    """

    preset: ClassVar[Settings] = {"generator": {"name": "diffusion", "width": 0.1875}, "feedback": {"parameters": "weights"}}


class GenSegTrainerVAE(GenSegTrainer):
    """Images from a conditional variational autoencoder."""

    preset: ClassVar[Settings] = {"generator": {"name": "vae"}}


class GenSegTrainer_5epochs(GenSegTrainer):  # noqa: N801
    """GenSegTrainer for 5 epochs."""

    preset_epochs = 5


class GenSegTrainer_50epochs(GenSegTrainer):  # noqa: N801
    """GenSegTrainer for 50 epochs."""

    preset_epochs = 50


class GenSegTrainer_100epochs(GenSegTrainer):  # noqa: N801
    """GenSegTrainer for 100 epochs."""

    preset_epochs = 100


class GenSegTrainer_250epochs(GenSegTrainer):  # noqa: N801
    """GenSegTrainer for 250 epochs."""

    preset_epochs = 250


__all__ = [
    "GenSegTrainerDiffusion",
    "GenSegTrainerGMM",
    "GenSegTrainerNoFeedback",
    "GenSegTrainerNoGenerator",
    "GenSegTrainerVAE",
    "GenSegTrainer_5epochs",
    "GenSegTrainer_50epochs",
    "GenSegTrainer_100epochs",
    "GenSegTrainer_250epochs",
]
