"""The benchmarks' rivals that learn from unlabelled images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mean_teacher
import pseudo_labels
from nnunetv2_genseg.trainers.short import nnUNetTrainerShort

from .conftest import DATASET_ID, make_trainer, weights_of
from .datasets import Kind, plan
from .trainings import checkpoint_of


def learned(raw: Path, weight: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[int, int]]]:
    """A trained student, and the patches that the network and the loss got in each step of training or validation."""
    monkeypatch.setattr(mean_teacher, "WEIGHT", weight)
    trainer = make_trainer(nnUNetTrainerShort, raw.name, "2d", "2,3,1,1,0", fold="all")
    sizes = []
    mean_teacher.learn_to_agree(trainer, [raw / "imagesTs"], 6, seed=0)
    loss, forward = trainer.loss.forward, trainer.network.forward
    monkeypatch.setattr(trainer.network, "forward", lambda image: sizes.append([len(image)]) or forward(image))
    monkeypatch.setattr(trainer.loss, "forward", lambda out, target: sizes[-1].append(len(target[0])) or loss(out, target))
    trainer.run_training()
    return trainer, sizes


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_a_mean_teachers_student_learns_from_unlabelled_patches_as_well(folder, monkeypatch, regions):
    raw = Kind(regions=regions).write(folder / "nnUNet_raw", DATASET_ID)
    plan(DATASET_ID, "2d")
    trainer, sizes = learned(raw, 1.0, monkeypatch)
    batch = trainer.configuration_manager.batch_size
    labelled = batch - batch // 2
    assert sizes == 2 * ([[batch, labelled]] * 3 + [[labelled, labelled]]), "the validation is nnU-Net's"
    assert checkpoint_of(trainer)["trainer_name"] == "nnUNetTrainerShort"
    shutil.rmtree(trainer.output_folder)
    without, _ = learned(raw, 0.0, monkeypatch)
    assert any(not torch.equal(weights_of(trainer)[name], value) for name, value in weights_of(without).items())


def test_the_consistency_has_its_full_weight_after_a_fifth_of_the_training():
    weights = [mean_teacher.weight_at(iteration, 100) for iteration in (0, 10, 20, 99)]
    assert weights == pytest.approx([0.1 * 0.0067379, 0.1 * 0.2865048, 0.1, 0.1], rel=1e-5)


def test_the_second_training_has_the_labelled_cases_and_those_that_the_first_labelled(tmp_path):
    dataset, images, predictions = (tmp_path / name for name in ("dataset", "images", "predictions"))
    for path in ("dataset/imagesTr/a_0000.png", "dataset/labelsTr/a.png", "images/b_0000.png", "images/b_0001.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    predictions.mkdir()
    (predictions / "b.png").write_text("predicted")
    (predictions / "plans.json").write_text("{}")
    (dataset / "dataset.json").write_text(json.dumps({"file_ending": ".png", "numTraining": 1}))
    pseudo_labels.add_cases(images, predictions, dataset)
    assert {path.name for path in (dataset / "imagesTr").iterdir()} == {"a_0000.png", "b_0000.png", "b_0001.png"}
    assert {path.name: path.read_text() for path in (dataset / "labelsTr").iterdir()} == {
        "a.png": "dataset/labelsTr/a.png",
        "b.png": "predicted",
    }
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 2
