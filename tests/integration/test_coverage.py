"""Whatever nnU-Net trains, GenSegTrainer trains: one small training for every kind of plan, dataset and trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch._dynamo import OptimizedModule

from nnunetv2_genseg.cli import external_trainers
from nnunetv2_genseg.trainers import GenSegMixin, GenSegTrainerShort, presets
from nnunetv2_genseg.trainers.saving import host_trainer

from .conftest import DATASET_ID, make_trainer
from .datasets import Kind, plan
from .trainings import LENGTH, STAGES, checkpoint_of, predict, train_and_resume


@dataclass(frozen=True)
class Row:
    """A training, and what makes it different from the others."""

    kind: Kind
    configuration: str
    holds: Callable[[nnUNetTrainer], bool]
    """Whether a trainer has what the row is there for."""
    planner: str = "ExperimentPlanner"
    edit: Callable[[dict[str, Any]], None] | None = None
    fold: int | str = 0


def add_lowres(plans: dict[str, Any]) -> None:
    """A configuration of two thirds of the resolution, by nnU-Net's own inheritance."""
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": [1.5 * length for length in full["spacing"]],
        "median_image_size_in_voxels": [size / 1.5 for size in full["median_image_size_in_voxels"]],
        "patch_size": [8, 16, 16],
        "batch_dice": True,
    }


def add_cascade(plans: dict[str, Any]) -> None:
    """3d_lowres, and 3d_fullres once more behind it."""
    add_lowres(plans)
    plans["configurations"]["3d_lowres"]["next_stage"] = "3d_cascade_fullres"
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}


def set_batch_size(size: int) -> Callable[[dict[str, Any]], None]:
    def edit(plans: dict[str, Any]) -> None:
        for content in plans["configurations"].values():
            content["batch_size"] = size

    return edit


def lowres(trainer: nnUNetTrainer) -> bool:
    return bool(np.allclose(trainer.configuration_manager.spacing, [2.25, 1.5, 1.5]))


def schemes(*names: str) -> Callable[[nnUNetTrainer], bool]:
    return lambda trainer: trainer.configuration_manager.normalization_schemes == [f"{name}Normalization" for name in names]


def masked(trainer: nnUNetTrainer) -> bool:
    return trainer.configuration_manager.use_mask_for_norm == [True]


def pseudo_2d(trainer: nnUNetTrainer) -> bool:
    _, do_dummy_2d_data_aug, _, _ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    return bool(do_dummy_2d_data_aug)


def batch_of(size: int) -> Callable[[nnUNetTrainer], bool]:
    return lambda trainer: len(next(trainer.dataloader_train)["data"]) == size


def regions_and_ignore(regions: bool, ignore: bool) -> Callable[[nnUNetTrainer], bool]:
    return lambda trainer: (trainer.label_manager.has_regions, trainer.label_manager.has_ignore_label) == (regions, ignore)


def residual(trainer: nnUNetTrainer) -> bool:
    return type(trainer.network).__name__ == "ResidualEncoderUNet"


def rare_inner(trainer: nnUNetTrainer) -> bool:
    training, _ = trainer.get_tr_and_val_datasets()
    return sum(len(training.load_case(case)[3]["class_locations"][2]) > 0 for case in training.identifiers) < 3


def trains_on_all(trainer: nnUNetTrainer) -> bool:
    training, validation = trainer.do_split()
    return sorted(training) == sorted(validation) == [f"tr_{i:03d}" for i in range(5)]


ROWS = {
    "2d": Row(Kind(), "2d", schemes("ZScore", "ZScore", "ZScore")),
    "3d_fullres": Row(Kind(dims=3), "3d_fullres", schemes("ZScore"), fold=1),
    "3d_lowres": Row(Kind(dims=3), "3d_lowres", lowres, edit=add_lowres, fold=4),
    "RGB": Row(Kind(channels=("rgb_to_0_1",) * 3), "2d", schemes("RGBTo01", "RGBTo01", "RGBTo01"), fold=2),
    "CT and MRI": Row(Kind(dims=3, channels=("CT", "T2")), "3d_fullres", schemes("CT", "ZScore")),
    "slices, one channel not normalised": Row(Kind(dims=3, channels=("noNorm", "T2")), "2d", schemes("No", "ZScore")),
    "zero outside of the subject": Row(Kind(dims=3, margin=0.125), "3d_fullres", masked),
    "anisotropic, pseudo-2D augmentation": Row(Kind(dims=3, every=3), "3d_fullres", pseudo_2d),
    "regions": Row(Kind(regions=True), "2d", regions_and_ignore(True, False)),
    "ignore label": Row(Kind(ignore=True), "2d", regions_and_ignore(False, True)),
    "regions and ignore label": Row(Kind(dims=3, regions=True, ignore=True), "3d_fullres", regions_and_ignore(True, True)),
    "residual encoder": Row(Kind(), "2d", residual, planner="nnUNetPlannerResEncM"),
    "residual encoder in 3D": Row(Kind(dims=3), "3d_fullres", residual, planner="nnUNetPlannerResEncM", fold=3),
    "batch of 1": Row(Kind(), "2d", batch_of(1), edit=set_batch_size(1)),
    "batch of 5": Row(Kind(), "2d", batch_of(5), edit=set_batch_size(5)),
    "a label that most cases lack": Row(Kind(rare=True), "2d", rare_inner),
    "all cases": Row(Kind(), "2d", trains_on_all, fold="all"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_trains_resumes_validates_and_predicts(folder, settings, row):
    settings(STAGES)
    raw = row.kind.write(folder / "nnUNet_raw", DATASET_ID)
    plans = plan(DATASET_ID, row.configuration, row.planner, row.edit)
    trainer = train_and_resume(GenSegTrainerShort, raw.name, row.configuration, fold=row.fold, plans_name=plans)
    assert row.holds(trainer)
    assert checkpoint_of(trainer)["trainer_name"] == "nnUNetTrainer"
    predict(trainer, folder / "predictions")


@pytest.mark.parametrize("kind", [Kind(dims=3), Kind(dims=3, regions=True, ignore=True)], ids=["labels", "regions and ignore"])
def test_a_cascade_trains_stage_after_stage(folder, settings, kind):
    settings(STAGES)
    raw = kind.write(folder / "nnUNet_raw", DATASET_ID)
    plans = plan(DATASET_ID, "3d_lowres", edit=add_cascade)
    plan_and_preprocess_api.preprocess([DATASET_ID], plans, ["3d_fullres"], [1])
    first = train_and_resume(GenSegTrainerShort, raw.name, "3d_lowres", fold="all")
    predict(first, folder / "lowres")
    second = train_and_resume(GenSegTrainerShort, raw.name, "3d_cascade_fullres", fold="all")
    assert second.num_input_channels == 3, "an image channel and one for every label"
    predict(second, folder / "fullres", previous=folder / "lowres")


def test_an_own_split_is_followed_and_cases_of_it_are_held_out(folder, settings):
    settings(STAGES)
    raw = Kind().write(folder / "nnUNet_raw", DATASET_ID, cases=6)
    plan(DATASET_ID, "2d")
    split = {"train": ["tr_005", "tr_001", "tr_003"], "val": ["tr_000", "tr_004"]}
    path = folder / "nnUNet_preprocessed" / raw.name / "splits_final.json"
    path.write_text(json.dumps([{"train": ["tr_000"], "val": ["tr_001"]}, split]))
    trainer = train_and_resume(GenSegTrainerShort, raw.name, "2d", fold=1)
    parts = json.loads((Path(trainer.output_folder) / "genseg_split.json").read_text())
    assert sorted(parts["training"] + parts["held_out"]) == sorted(split["train"])
    assert len(parts["held_out"]) == 1
    validated = sorted(path.stem for path in (Path(trainer.output_folder) / "validation").glob("*.png"))
    assert validated == split["val"]


def test_a_compiled_network_trains_and_feedback_looks_through_it(phantom, folder, monkeypatch):
    """Compiled by torch as on a GPU, up to the code generator: nnU-Net itself does not compile on a CPU."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="aot_eager"))
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", True)
    trainer = train_and_resume(GenSegTrainerShort, *phantom)
    assert isinstance(trainer.network, OptimizedModule)
    assert not any(name.startswith("_orig_mod") for name in checkpoint_of(trainer)["network_weights"])
    predict(trainer, folder / "predictions")


class Watched(GenSegTrainerShort):
    """Records in which types of numbers its network trains, in its own steps and in the feedback."""

    def initialize(self) -> None:
        super().initialize()
        self.phase = "step"
        self.seen: set[tuple[str, torch.dtype]] = set()
        self.network.register_forward_hook(self._watch)

    def _watch(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            self.seen.add((self.phase, output[0].dtype))

    def _feedback_step(self, *arguments: Any) -> None:
        self.phase = "feedback"
        super()._feedback_step(*arguments)
        self.phase = "step"


def test_feedback_is_in_float32_where_the_network_trains_in_bfloat16(phantom, monkeypatch):
    context = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.dummy_context"
    monkeypatch.setattr(context, lambda: torch.autocast("cpu", torch.bfloat16))
    trainer = train_and_resume(Watched, *phantom)
    assert trainer.seen == {("step", torch.bfloat16), ("feedback", torch.float32)}


class WatchedOnCuda(Watched):
    """On the first GPU."""

    def __init__(
        self, plans: dict[str, Any], configuration: str, fold: int, dataset_json: dict[str, Any], device: torch.device
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 and nnU-Net's GradScaler need a GPU")
def test_feedback_is_in_float32_where_the_network_trains_in_float16(phantom, folder, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "0")
    trainer = train_and_resume(WatchedOnCuda, *phantom)
    assert trainer.seen == {("step", torch.float16), ("feedback", torch.float32)}
    assert trainer.grad_scaler.get_scale() > 0
    predict(trainer, folder / "predictions")


PRESETS: dict[str, dict[str, Any]] = {
    "GenSegTrainer": {},
    "GenSegTrainerDA5": {},
    "GenSegTrainerDiffusion": {"generator.name": "diffusion"},
    "GenSegTrainerGMM": {"generator.name": "gmm", "redraw.mode": "tissue", "feedback.parameters": "policy"},
    "GenSegTrainerNoFeedback": {"feedback.enabled": False},
    "GenSegTrainerNoGenerator": {"mixing.sources": {"deformation": 1.0}, "feedback.enabled": False},
    "GenSegTrainerVAE": {"generator.name": "vae"},
    **{f"GenSegTrainer_{epochs}epochs": {"num_epochs": epochs} for epochs in (5, 50, 100, 250)},
}
"""What a preset sets; without a number of epochs it has nnU-Net's 1000."""


@pytest.mark.parametrize("name", ["GenSegTrainer", "GenSegTrainerDA5", *presets.__all__])
def test_nnunet_finds_every_preset_and_it_sets_what_its_name_says(phantom, monkeypatch, name):
    monkeypatch.delenv("nnUNet_genseg_config")
    monkeypatch.setenv("nnUNet_extTrainer", external_trainers())
    trainer = make_trainer(recursive_find_trainer_class_by_name(name), *phantom, LENGTH)
    trainer.initialize()
    expected = {"num_epochs": 1000, **PRESETS[name]}
    found = {key: attrgetter(key)(trainer if key == "num_epochs" else trainer.genseg) for key in expected}
    assert found == expected
    assert host_trainer(type(trainer), GenSegMixin) == ("nnUNetTrainerDA5" if name.endswith("DA5") else "nnUNetTrainer")
    assert trainer.output_folder_base.endswith(f"{name}__nnUNetPlans__2d")
