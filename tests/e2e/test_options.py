"""nnU-Net's own options of `nnUNetv2_train`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from .conftest import Shell

MODEL = Path("nnUNet_results") / "Dataset903_Phantom2D" / "GenSegTrainerShort__nnUNetPlans__2d"
TRAIN = ("genseg", "train", "903", "2d")
OPTIONS = ("-tr", "GenSegTrainerShort", "-device", "cpu")
WANDB = {"nnUNet_wandb_enabled": "1", "nnUNet_wandb_mode": "offline"}


@pytest.fixture(scope="session")  # beside other modules' tests a module's fixture could be made twice
def trained(shell: Shell) -> Path:
    """Fold 1, trained with data loading in the main process, wandb's log and predicted probabilities."""
    output = shell.succeed(*TRAIN, "1", *OPTIONS, "--npz", nnUNet_n_proc_DA="0", **WANDB)
    assert "Mean Validation Dice" in output
    return shell.folder / MODEL / "fold_1"


def validated(fold: Path) -> list[str]:
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    return sorted(case["prediction_file"] for case in summary["metric_per_case"])


def test_npz_writes_probabilities_of_the_validation_cases(trained: Path):
    probabilities = [np.load(path)["probabilities"] for path in sorted((trained / "validation").glob("*.npz"))]
    assert len(probabilities) == len(validated(trained)) == 1
    assert all(np.allclose(values.sum(axis=0), 1, atol=1e-3) for values in probabilities)


def test_wandb_gets_the_values_of_the_generator(trained: Path):
    (run,) = trained.glob("wandb/offline-run-*/*.wandb")
    assert b"genseg/share" in run.read_bytes()
    assert b"genseg/l1" in run.read_bytes()


def test_a_finished_training_is_resumed_with_its_wandb_run_and_only_validates(shell: Shell, trained: Path):
    runs = sorted(path.name.rsplit("-", 1)[-1] for path in trained.glob("wandb/offline-run-*"))
    assert len(runs) == 1
    before = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    (trained / "validation" / "summary.json").unlink()
    output = shell.succeed(*TRAIN, "1", *OPTIONS, "--c", **WANDB)
    assert "Epoch 0" not in output
    assert len(validated(trained)) == 1
    after = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    assert after["current_epoch"] == before["current_epoch"]
    assert all(torch.equal(values, after["network_weights"][name]) for name, values in before["network_weights"].items())
    assert {path.name.rsplit("-", 1)[-1] for path in trained.glob("wandb/offline-run-*")} == set(runs)


def test_val_and_val_best_validate_and_train_nothing(shell: Shell, trained: Path):
    (trained / "validation" / "summary.json").unlink()
    files = {path: path.read_bytes() for path in trained.glob("*checkpoint_*")}
    output = shell.succeed(*TRAIN, "1", *OPTIONS, "--val", "--val_best")
    assert "Mean Validation Dice" in output
    assert "Epoch" not in output
    assert len(validated(trained)) == 1
    assert {path: path.read_bytes() for path in trained.glob("*checkpoint_*")} == files


def test_pretrained_weights_are_taken_and_without_checkpoints_none_is_written(shell: Shell, trained: Path, tmp_path: Path):
    settings = tmp_path / "genseg.json"
    settings.write_text(json.dumps({"feedback": {"interval": 1}}))
    pretrained = ("-pretrained_weights", str(trained / "checkpoint_final.pth"))
    output = shell.succeed(
        *TRAIN, "2", *OPTIONS, *pretrained, "--disable_checkpointing", nnUNet_n_proc_DA="0", nnUNet_genseg_config=str(settings)
    )
    assert "Loading pretrained weights" in output
    assert "hypergradient_norm" in output
    assert "Mean Validation Dice" in output
    assert not list((shell.folder / MODEL / "fold_2").glob("*checkpoint*"))
