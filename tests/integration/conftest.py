"""Phantom datasets planned by nnU-Net itself, and trainers that run in this process."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise import gaussian_blur
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.phantoms import PhantomDataset
from nnunetv2_genseg.trainers import processes

from .datasets import Kind, plan, use_threads

PROGRAMS = Path(sys.executable).parent
TINY = "nnUNetPlansTiny"
DATASET_ID = 910
"""Of the fixture `phantom`, and of the datasets that tests make for themselves in `folder`."""


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's three folders."""

    folder: Path

    def preprocessed(self, dataset: str) -> Path:
        return self.folder / "nnUNet_preprocessed" / dataset

    @property
    def environment(self) -> dict[str, str]:
        return {name: str(self.folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}

    def shrink(self, dataset: str, configuration: str) -> None:
        """Plans beside nnU-Net's own, for a network of three stages with a few channels: an iteration takes milliseconds."""
        folder = self.preprocessed(dataset)
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        kwargs = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
        for name, value in kwargs.items():
            if isinstance(value, list):
                kwargs[name] = value[: 2 if name == "n_conv_per_stage_decoder" else 3]
        kwargs |= {"n_stages": 3, "features_per_stage": [4, 8, 8]}
        (folder / f"{TINY}.json").write_text(json.dumps(plans | {"plans_name": TINY}))


def make_repeatable(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Fixes the choice of nnU-Net's Gaussian blur, which times two algorithms and keeps the faster one, so that equal seeds
    give images that differ in the last bits; and leaves out nnU-Net's own picture, which takes a second."""

    def direct(self: object, image: torch.Tensor, sigma: float, axis: int) -> torch.Tensor:
        return gaussian_blur.blur_dimension(image, sigma, axis, force_use_fft=False)

    patch(gaussian_blur.GaussianBlurTransform, "_benchmark_wrapper", direct)
    patch(MetaLogger, "plot_progress_png", lambda self, folder: None)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """2D RGB (901), 3D (902)."""
    space = Workspace(tmp_path_factory.mktemp("nnunet"))
    PhantomDataset(901, dims=2, training_cases=8, test_cases=2, extent=32).write(space.folder / "nnUNet_raw")
    PhantomDataset(902, dims=3, training_cases=5, test_cases=2, extent=24).write(space.folder / "nnUNet_raw")
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        for name, value in space.environment.items():
            patch.setenv(name, value)
        plan(901, "2d", small=False)
        plan(902, "3d_fullres", small=False)
    space.shrink("Dataset901_Phantom2D", "2d")
    space.shrink("Dataset902_Phantom3D", "3d_fullres")
    return space


@pytest.fixture(scope="session")
def undisturbed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of the training that the tests of faults disturb."""
    from .processes import Training

    training = Training(workspace, tmp_path_factory.mktemp("undisturbed"))
    outcome = training.run()
    assert outcome.exit_status == 0, outcome.trace
    return training.final_state()


@pytest.fixture
def nnunet(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders set, results in a folder of the test's own, data loading in this process, blurring repeatable."""
    for name, value in workspace.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.delenv("nnUNet_genseg_config", raising=False)

    make_repeatable(monkeypatch.setattr)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders for this test alone, everything in this process, and no trainers but nnU-Net's own to be found."""
    use_threads(monkeypatch)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)  # nnU-Net's own picture takes a second
    return tmp_path


@pytest.fixture
def phantom(folder: Path, settings: Callable[[dict[str, Any]], None]) -> tuple[str, str]:
    """A planned 2D dataset and its configuration."""
    from .trainings import STAGES

    settings(STAGES)
    raw = Kind().write(folder / "nnUNet_raw", DATASET_ID)
    plan(DATASET_ID, "2d")
    return raw.name, "2d"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small trainings are faster in one thread and one process, and give the same bits."""
    monkeypatch.setattr(processes, "default_num_processes", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Writes GenSeg's configuration file and names it in the environment."""

    def write(content: dict[str, Any]) -> None:
        path = tmp_path / "genseg.json"
        path.write_text(json.dumps(content))
        monkeypatch.setenv("nnUNet_genseg_config", str(path))

    return write


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_trainer(
    kind: type[nnUNetTrainer],
    dataset: str,
    configuration: str,
    length: str,
    fold: Any = 0,
    resume: bool = False,
    plans_name: str = "nnUNetPlans",
    device: str = "cpu",
) -> nnUNetTrainer:
    """A trainer as nnU-Net's command line makes it, with everything seeded."""
    os.environ["nnUNet_genseg_short"] = length
    folder = Path(os.environ["nnUNet_preprocessed"]) / dataset
    plans = json.loads((folder / f"{plans_name}.json").read_text())
    plans["continue_training"] = resume
    seed_everything(0)
    description = json.loads((folder / "dataset.json").read_text())
    trainer = kind(plans=plans, configuration=configuration, fold=fold, dataset_json=description, device=torch.device(device))
    seed_everything(int(length.split(",")[-1]))
    return trainer


def weights_of(trainer: nnUNetTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.network.state_dict().items()}


class StoppedError(Exception):
    """Ends a training in the middle."""


def stop_after(trainer: nnUNetTrainer, epochs: int) -> None:
    """Makes a training end abruptly before its epoch of that number begins."""
    begin = trainer.on_epoch_start

    def checked() -> None:
        if trainer.current_epoch == epochs:
            raise StoppedError
        begin()

    trainer.on_epoch_start = checked


def resume(kind: type[nnUNetTrainer], dataset: str, configuration: str, length: str, **options: Any) -> nnUNetTrainer:
    """A trainer as nnU-Net's command line makes it with `--c`."""
    trainer = make_trainer(kind, dataset, configuration, length, resume=True, **options)
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    return trainer
