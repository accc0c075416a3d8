"""What a training has left in its fold folder about itself: settings, losses, Dice, and the values that GenSeg logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2_genseg.checkpoint import UNREADABLE, load_sibling
from nnunetv2_genseg.config import GenSegConfig, GenSegError, checked
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.plots.curves import Curves
from nnunetv2_genseg.plots.progress import NORM, ProgressRecord
from nnunetv2_genseg.trainers.exporting import SUMMARY
from nnunetv2_genseg.trainers.resuming import CONFIG_FILE, STAMPS
from nnunetv2_genseg.trainers.standalone import Standalone
from nnunetv2_genseg.trainers.trained_generator import fold_folder, newest_state


@dataclass(frozen=True)
class History:
    """A training until its newest checkpoint."""

    folder: Path
    version: str
    """Of this package, when the training began."""
    config: GenSegConfig
    checkpoint: Path
    epochs: int
    logged: dict[str, list[Any]]
    """nnU-Net's values of each epoch."""
    progress: ProgressRecord

    def curves(self, classes: Sequence[str]) -> list[Curves]:
        """Everything that was recorded; `classes` are the names of the foreground classes, in nnU-Net's order."""
        of_nnunet = {
            "loss of the segmentation network": {"training": "train_losses", "validation": "val_losses"},
            "Dice of validation patches, mean of the classes": {"epoch": "mean_fg_dice", "moving average": "ema_fg_dice"},
        }
        panels = [
            Curves(title, {name: list(enumerate(map(float, self.logged[key]))) for name, key in lines.items()})
            for title, lines in of_nnunet.items()
        ]
        by_class = [map(float, values) for values in zip(*self.logged["dice_per_class_or_region"])]
        lines = {name: list(enumerate(values)) for name, values in zip(classes, by_class)}
        panels.append(Curves("Dice of validation patches, each class", lines))
        for title, names in self.progress.panels().items():
            panels.append(Curves(title, {name: self.progress.points(name) for name in names if self.progress.points(name)}))
        norms = self.progress.points(NORM)
        if any(norm > 0 for _, norm in norms):
            panels.append(Curves("norm of the hypergradient", {NORM: norms}, logarithmic=True))
        return [panel for panel in panels if any(panel.lines.values())]

    def validation(self, classes: dict[str, Any]) -> list[tuple[str, str]]:
        """Class and mean Dice of the validation cases; nothing before the final validation.

        Args:
            classes: labels, or tuples of labels, by name.
        """
        path = self.folder / SUMMARY
        if not path.is_file():
            return []
        means = read_json(path, dict[str, Any], "a mapping").get("mean", {})
        return [(name, f"{means[str(value)]['Dice']:.4g}") for name, value in classes.items() if str(value) in means]


def read_history(settings: Standalone) -> History:
    """Reads what the training of a fold has left.

    Raises:
        GenSegError: the fold was not trained by a GenSeg trainer, has no checkpoint yet, or a file is damaged.
    """
    folder = fold_folder(settings)
    newest = newest_state(folder)
    if folder is None or newest is None:
        raise GenSegError(
            f"nnUNet_results holds no checkpoint of fold {settings.fold} with trainer {settings.trainer}, plans {settings.plans} "
            f"and configuration {settings.configuration} that GenSeg wrote; train the fold (genseg train), or name the trainer "
            "of a trained one (-tr)"
        )
    checkpoint, epoch = newest
    content = read_json(folder / CONFIG_FILE, dict[str, Any], "a mapping of settings")
    values = {key: value for key, value in content.items() if key not in STAMPS}
    progress = ProgressRecord()
    try:
        logged = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["logging"]
        progress.load_state_dict(load_sibling({}, checkpoint, epoch)["progress"])
    except UNREADABLE as error:
        if isinstance(error, GenSegError):
            raise
        raise GenSegError(f"{checkpoint} cannot be read ({type(error).__name__}: {error}); restore it") from error
    config = checked(GenSegConfig, values, str(folder / CONFIG_FILE))
    return History(folder, str(content.get(STAMPS[0])), config, checkpoint, epoch, logged, progress)
