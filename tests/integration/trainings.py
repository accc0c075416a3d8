"""A small training through all stages, resumed, validated and used for a prediction, for any plan, dataset and trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .conftest import StoppedError, make_trainer, resume, stop_after

LENGTH = "5,2,1,1,0"
STOP = 3
STAGES = {
    "schedule": {"warmup": 0.2, "ramp": 0.2, "tail": 0.2},
    "mixing": {"share": 0.8},
    "paste": {"probability": 0.8, "kinds": {"box": 1.0, "carve": 1.0, "lesion": 1.0}},
    "generator": {"interval": 1},
    "feedback": {"interval": 1, "start": 0.4},
}
"""Epoch 0 is the warm-up, from 1 on some patches are synthetic, 2 and 3 have feedback, 4 is the tail."""


def described(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch must stay as it is when pairs are put into it: shapes, types, and cases."""

    def shape(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return [shape(level) for level in value]
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.dtype
        return value.tolist() if isinstance(value, np.ndarray) else value

    return {key: shape(value) for key, value in batch.items()}


def watch_batches(trainer: nnUNetTrainer) -> list[int]:
    """Checks at every step that the other trainer gets a batch like the loader's; returns a list of its sizes to be."""
    step, host_step, given, sizes = trainer.train_step, trainer.host_step, [], []

    def watched(batch: dict[str, Any]) -> Any:
        given.append(described(batch))
        return step(batch)

    def handed_on(batch: dict[str, Any]) -> Any:
        assert described(batch) == given[-1]
        sizes.append(len(batch["data"]))
        return host_step(batch)

    trainer.train_step, trainer.host_step = watched, handed_on
    return sizes


def train_and_resume(kind: type[nnUNetTrainer], *arguments: Any, **options: Any) -> nnUNetTrainer:
    """Trains through all stages, with an interruption during the feedback, and validates; returns the trainer."""
    first = make_trainer(kind, *arguments, LENGTH, **options)
    stop_after(first, STOP)
    with pytest.raises(StoppedError):
        first.run_training()
    trainer = resume(kind, *arguments, LENGTH, **options)
    sizes = watch_batches(trainer)
    trainer.run_training()
    assert sizes == [trainer.batch_size] * 4
    trainer.perform_actual_validation()
    rows = trainer.recorder.progress.rows
    assert ["l1" in row for row in rows] == [True, True, True, True, False]
    assert [row["share"] for row in rows] == pytest.approx([0.0, 0.4, 0.8, 0.8, 0.0])
    assert ["hypergradient_norm" in row for row in rows] == [False, False, True, True, False]
    assert "acceptance_rate" not in rows[0].keys() | rows[4].keys()
    assert "acceptance_rate" in rows[2].keys() | rows[3].keys()  # with one patch a batch an epoch may have no pair
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert rows[2]["hypergradient_norm"] > 0
    assert (Path(trainer.output_folder) / "validation" / "summary.json").is_file()
    return trainer


def predict(trainer: nnUNetTrainer, output: Path, previous: Path | None = None) -> None:
    """Predicts the test case with stock nnU-Net from the trainer's folder; shape and labels must be the dataset's.

    Args:
        trainer: after its training.
        output: folder for the prediction.
        previous: in a cascade the folder of the previous stage's prediction.
    """
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (trainer.fold,))
    images = Path(os.environ["nnUNet_raw"]) / trainer.plans_manager.dataset_name / "imagesTs"
    output.mkdir()
    predictor.predict_from_files_sequential(
        str(images), str(output), folder_with_segs_from_prev_stage=None if previous is None else str(previous)
    )
    ending = trainer.dataset_json["file_ending"]
    mask = sitk.ReadImage(str(output / f"ts_000{ending}"))
    assert mask.GetSize() == sitk.ReadImage(str(next(images.iterdir()))).GetSize()
    assert set(np.unique(sitk.GetArrayFromImage(mask)).tolist()) <= {0, 1, 2}


def checkpoint_of(trainer: nnUNetTrainer) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    return content
