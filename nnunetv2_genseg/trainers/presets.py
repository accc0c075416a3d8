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


def _short(epochs: int) -> type[GenSegTrainer]:
    name = f"GenSegTrainer_{epochs}epochs"
    members = {"__module__": __name__, "__doc__": f"GenSegTrainer for {epochs} epochs.", "preset_epochs": epochs}
    return type(name, (GenSegTrainer,), members)


globals().update({trainer.__name__: trainer for trainer in map(_short, SHORT_TRAININGS)})

__all__ = ["GenSegTrainerGMM", "GenSegTrainerNoFeedback", *(f"GenSegTrainer_{epochs}epochs" for epochs in SHORT_TRAININGS)]
