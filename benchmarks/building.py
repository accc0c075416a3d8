"""Builds a trainer on a preprocessed dataset, as nnU-Net's command line does, in this process."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from nnunetv2_genseg.cli import external_trainers
from nnunetv2_genseg.config import Settings


def nnunet_folders(dataset: Path, model: Path) -> dict[str, str]:
    """nnU-Net's environment: raw and preprocessed data below `dataset`, trained models below `model`, one process each."""
    return {
        "nnUNet_raw": str(dataset / "raw"),
        "nnUNet_preprocessed": str(dataset / "preprocessed"),
        "nnUNet_results": str(model),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
    }


def build_trainer(
    kind: str,
    dataset: Path,
    number: str,
    configuration: str,
    model: Path,
    *,
    length: tuple[int, int, int, int],
    seed: int = 0,
    device: str = "cpu",
    settings: Settings | None = None,
    batch_factor: int = 1,
    rate_factor: int = 1,
    planned_as: Path | None = None,
) -> Any:
    """One of the package's trainers of any length, everything seeded; on the CPU one thread, and no process loads data.

    Args:
        kind: class name, as in `GenSegTrainerShort`.
        dataset: folder with nnU-Net's `preprocessed` folder.
        number: of the dataset, as in "104".
        configuration: as in "2d".
        model: folder for the results.
        length: epochs, iterations, validation iterations, epochs between checkpoints.
        seed: of the network's weights, the augmentation and GenSeg.
        device: `cpu` or `cuda`; with `cuda` as many processes load data as `nnUNet_n_proc_DA` says.
        settings: GenSeg's, where they differ from the defaults.
        batch_factor: times nnU-Net's planned batch size.
        rate_factor: times nnU-Net's learning rate.
        planned_as: folder as `dataset`, whose plans give batch, patch and network.
    """
    workers = "0" if device == "cpu" else os.environ.get("nnUNet_n_proc_DA", "12")
    os.environ.update(nnunet_folders(dataset, model) | {"nnUNet_n_proc_DA": workers})
    os.environ["nnUNet_genseg_short"] = ",".join(map(str, (*length, seed)))
    model.mkdir(parents=True, exist_ok=True)
    (model / "settings.json").write_text(json.dumps((settings or {}) | {"seed": seed}))
    os.environ["nnUNet_genseg_config"] = str(model / "settings.json")
    if kind.startswith("nnUNet"):
        os.environ["nnUNet_extTrainer"] = external_trainers()  # GenSeg's checkpoints are predicted without it

    # imported here, where nnU-Net's environment is set
    import numpy as np
    import torch

    from nnunetv2_genseg import trainers

    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    random.seed(seed)
    np.random.seed(seed)
    preprocessed = next((dataset / "preprocessed").glob(f"Dataset{number}_*"))
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    plan = plans["configurations"][configuration]
    if planned_as is not None:
        other = next((planned_as / "preprocessed").glob(f"Dataset{number}_*")) / "nnUNetPlans.json"
        rival = json.loads(other.read_text())["configurations"][configuration]
        plan |= {key: rival[key] for key in ("batch_size", "patch_size", "architecture")}
    plan["batch_size"] *= batch_factor
    trainer = getattr(trainers, kind)(
        plans=plans,
        configuration=configuration,
        fold="all",
        dataset_json=json.loads((preprocessed / "dataset.json").read_text()),
        device=torch.device(device),
    )
    trainer.initial_lr *= rate_factor
    return trainer


def without_pictures(trainer: Any) -> None:
    """Leaves out nnU-Net's picture of the progress, which costs a second an epoch, and GenSeg's but for the last epoch."""
    trainer.logger.plot_progress_png = lambda folder: None
    recorder = getattr(trainer, "recorder", None)
    if recorder is None:
        return
    refresh = recorder.refresh

    def last_alone(folder: Path, epoch: int, epochs: int, *others: Any) -> None:
        if epoch == epochs - 1:
            refresh(folder, epoch, epochs, *others)

    recorder.refresh = last_alone


def deliver_average(trainer: Any, iterations: int) -> None:
    """Makes a trainer save, at its end, the moving average of its weights in place of the last ones."""
    from nnunetv2_genseg.trainers.teacher import moving_average

    trainer.initialize()
    average = moving_average(trainer.network, iterations)
    step, save = trainer.train_step, trainer.save_checkpoint

    def train_step(batch: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = step(batch)
        average.update_parameters(trainer.network)
        return result

    def save_checkpoint(filename: str) -> None:
        if Path(filename).name == "checkpoint_final.pth":
            trainer.network.load_state_dict(average.module.state_dict())
        save(filename)

    trainer.train_step, trainer.save_checkpoint = train_step, save_checkpoint
