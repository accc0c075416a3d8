"""A GenSeg trainer of nnU-Net for other work than a training: its data and its generator, without results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_genseg.config import (
    FeedbackConfig,
    GenSegConfig,
    GenSegError,
    GenSegFileError,
    MaskConfig,
    ReviewConfig,
    Settings,
    UnlabelledConfig,
)
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.trainers.building import build_batch_codec, build_loop
from nnunetv2_genseg.trainers.mixin import GenSegMixin


@dataclass(frozen=True)
class Standalone:
    """Which trainer, on which data."""

    dataset: str
    """Name or number of a dataset that nnU-Net has planned and preprocessed."""
    configuration: str
    """nnU-Net's, such as `2d`."""
    fold: str
    """`all` for all cases, or the number of a fold, whose training cases alone are used."""
    output: Path
    """Folder that is written; files of the same names that are already in it are overwritten."""
    trainer: str
    """Name of the trainer whose preset, and whose augmentation, is used."""
    plans: str
    """Name of nnU-Net's plans."""
    device: str
    """`cuda`, `cpu` or `mps`."""


def require_writable(folder: Path) -> None:
    """Checks that a folder can be made or written.

    Raises:
        GenSegFileError: it cannot.
    """
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise GenSegFileError(
            f"{folder} cannot be written, since {place} is no folder or not writable; name another output folder"
        )


@contextmanager
def writing_to(folder: str, **further: str) -> Iterator[None]:
    """Trainers make a folder and a log when they are built: inside the block in `folder`, and without a run at wandb.

    Args:
        folder: an existing one.
        further: environment variables inside the block.
    """
    changed = {"nnUNet_results": folder, "nnUNet_wandb_enabled": "0"} | further
    kept = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def build(settings: Standalone, mixin: type[GenSegMixin], preset: Settings | None = None) -> Any:
    """The trainer, with `mixin` before its class.

    Args:
        settings: which trainer.
        mixin: what it shall do.
        preset: settings in place of the trainer's preset.

    Raises:
        GenSegError: the trainer has no generator, or what it reads is not valid.
        FileNotFoundError: the dataset was not planned or preprocessed.
    """
    dataset = Path(os.environ["nnUNet_preprocessed"]) / maybe_convert_to_dataset_name(settings.dataset)
    plans = read_json(dataset / f"{settings.plans}.json", dict[str, Any], "a mapping")
    description = read_json(dataset / "dataset.json")
    host = recursive_find_trainer_class_by_name(settings.trainer)
    if not issubclass(host, GenSegMixin):
        raise GenSegError(f"{settings.trainer} has no generator; choose GenSegTrainer or another trainer with GenSegMixin")
    kind = type(f"{settings.trainer}Standalone", (mixin, host), {} if preset is None else {"preset": preset})
    return kind(
        plans=plans | {"continue_training": False},
        configuration=settings.configuration,
        fold="all" if settings.fold == "all" else int(settings.fold),
        dataset_json=description,
        device=torch.device(settings.device),
    )


def without_training(config: GenSegConfig) -> GenSegConfig:
    """The settings without what only a training of the segmentation network has: feedback, learned masks, images without labels,
    judgement of pairs."""
    unused = {
        "feedback": FeedbackConfig(enabled=False),
        "masks": MaskConfig(),
        "unlabelled": UnlabelledConfig(),
        "review": ReviewConfig(),
    }
    return config.model_copy(update=unused)


class StandaloneMixin(GenSegMixin):
    """Makes a GenSeg trainer build its generator alone: no segmentation network, no feedback, no learned masks."""

    def prepare(self) -> None:
        """Builds the generator and what nnU-Net's loaders need. In a cascade the previous stage's segmentation is left out."""
        self.genseg = without_training(self.genseg)
        self.is_cascaded, self.folder_with_segs_from_previous_stage = False, None
        self.enable_deep_supervision = False
        self._set_batch_size_and_oversample()
        self.loop, self._batches = build_loop(self), build_batch_codec(self)
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
