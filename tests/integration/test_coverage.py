"""Whatever nnU-Net trains, GenSegTrainer trains: one small training for every kind of plan, dataset and trainer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.robust_ce_loss import TopKLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerTopkLoss import nnUNetTrainerTopk10Loss
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch._dynamo import OptimizedModule

from nnunetv2_genseg.cli import external_trainers
from nnunetv2_genseg.trainers import GenSegMixin, GenSegTrainerShort, presets
from nnunetv2_genseg.trainers.short import ShortTraining

from .conftest import StoppedError, make_trainer, resume, stop_after
from .datasets import Kind, plan, use_threads

DATASET_ID = 910
LENGTH = "5,2,1,1,0"
STOP = 3
STAGES = {"schedule": {"warmup": 0.2, "ramp": 0.1, "tail": 0.2}, "feedback": {"interval": 1, "start": 0.4}}
"""Epoch 0 is the warm-up, 1 mixes, 2 and 3 have feedback, 4 is the tail."""


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


def train_and_resume(kind: type[nnUNetTrainer], *arguments: Any, **options: Any) -> nnUNetTrainer:
    """Trains through all stages, with an interruption during the feedback, and validates; returns the trainer."""
    first = make_trainer(kind, *arguments, LENGTH, **options)
    stop_after(first, STOP)
    with pytest.raises(StoppedError):
        first.run_training()
    trainer = resume(kind, *arguments, LENGTH, **options)
    trainer.run_training()
    trainer.perform_actual_validation()
    rows = trainer.progress.rows
    assert [{"l1", "synthetic", "hypergradient"} & row.keys() for row in rows] == [
        {"l1"},
        {"l1", "synthetic"},
        {"l1", "synthetic", "hypergradient"},
        {"l1", "synthetic", "hypergradient"},
        set(),
    ]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert rows[2]["hypergradient"] > 0
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


def with_genseg(host: type[nnUNetTrainer]) -> type[nnUNetTrainer]:
    """`class Mixed(GenSegMixin, host)`, of a length that the environment sets."""
    return type("Mixed", (ShortTraining, GenSegMixin, host), {})


def transforms_of(trainer: nnUNetTrainer) -> set[str]:
    transforms = trainer.dataloader_train.data_loader.transforms.transforms
    return {type(getattr(step, "transform", step)).__name__ for step in transforms}


def no_supervision_below(trainer: nnUNetTrainer) -> bool:
    target = next(trainer.dataloader_train)["target"]
    return isinstance(target, torch.Tensor) and not isinstance(trainer.loss.loss, DeepSupervisionWrapper)


def statistics_of_real_and_mixed_batches(trainer: nnUNetTrainer) -> bool:
    """Batch norm saw the segmenter's own steps and no others, such as the feedback's."""
    steps = {int(value) for name, value in trainer.network.named_buffers() if name.endswith("num_batches_tracked")}
    return steps == {trainer.num_epochs * trainer.num_iterations_per_epoch}


HOSTS: dict[type[nnUNetTrainer], Callable[[nnUNetTrainer], bool]] = {
    nnUNetTrainerNoMirroring: lambda trainer: (
        trainer.inference_allowed_mirroring_axes is None and "MirrorTransform" not in transforms_of(trainer)
    ),
    nnUNetTrainerDA5: lambda trainer: {"BlankRectangleTransform", "LocalGammaTransform"} <= transforms_of(trainer),
    nnUNetTrainerNoDA: lambda trainer: "SpatialTransform" not in transforms_of(trainer),
    nnUNetTrainerNoDeepSupervision: no_supervision_below,
    nnUNetTrainerAdam: lambda trainer: type(trainer.optimizer) is torch.optim.AdamW,
    nnUNetTrainerTopk10Loss: lambda trainer: isinstance(trainer.loss.loss.loss, TopKLoss),
    nnUNetTrainerBN: statistics_of_real_and_mixed_batches,
}
"""Trainers of nnU-Net, each of which changes another hook, and whether a trainer still behaves like it."""


@pytest.mark.parametrize(("host", "holds"), HOSTS.items(), ids=[host.__name__ for host in HOSTS])
def test_is_added_to_any_trainer_in_one_line(folder, settings, host, holds):
    settings(STAGES)
    raw = Kind().write(folder / "nnUNet_raw", DATASET_ID)
    plan(DATASET_ID, "2d")
    trainer = train_and_resume(with_genseg(host), raw.name, "2d")
    assert holds(trainer)
    assert checkpoint_of(trainer)["trainer_name"] == host.__name__
    predict(trainer, folder / "predictions")


def test_an_own_split_is_carved_and_validated_as_it_says(folder, settings):
    settings(STAGES)
    raw = Kind().write(folder / "nnUNet_raw", DATASET_ID, cases=6)
    plan(DATASET_ID, "2d")
    split = {"train": ["tr_005", "tr_001", "tr_003"], "val": ["tr_000", "tr_004"]}
    path = folder / "nnUNet_preprocessed" / raw.name / "splits_final.json"
    path.write_text(json.dumps([{"train": ["tr_000"], "val": ["tr_001"]}, split]))
    trainer = train_and_resume(GenSegTrainerShort, raw.name, "2d", fold=1)
    carved = json.loads((Path(trainer.output_folder) / "genseg_split.json").read_text())
    assert sorted(carved["training"] + carved["feedback"]) == sorted(split["train"])
    assert len(carved["feedback"]) == 1
    validated = sorted(path.stem for path in (Path(trainer.output_folder) / "validation").glob("*.png"))
    assert validated == split["val"]


@pytest.fixture
def phantom(folder: Path, settings: Callable[[dict[str, Any]], None]) -> tuple[str, str]:
    """A planned 2D dataset and its configuration."""
    settings(STAGES)
    raw = Kind().write(folder / "nnUNet_raw", DATASET_ID)
    plan(DATASET_ID, "2d")
    return raw.name, "2d"


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


def test_feedback_is_in_float32_where_the_segmenter_trains_in_bfloat16(phantom, monkeypatch):
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
def test_feedback_is_in_float32_where_the_segmenter_trains_in_float16(phantom, folder, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "0")
    trainer = train_and_resume(WatchedOnCuda, *phantom)
    assert trainer.seen == {("step", torch.float16), ("feedback", torch.float32)}
    assert trainer.grad_scaler.get_scale() > 0
    predict(trainer, folder / "predictions")


PRESETS: dict[str, dict[str, Any]] = {
    "GenSegTrainer": {},
    "GenSegTrainerDiffusion": {"generator.name": "diffusion"},
    "GenSegTrainerGMM": {"generator.name": "gmm", "conditioning.mode": "tissue", "feedback.parameters": "policy"},
    "GenSegTrainerNoFeedback": {"feedback.enabled": False},
    "GenSegTrainerVAE": {"generator.name": "vae"},
    **{f"GenSegTrainer_{epochs}epochs": {"num_epochs": epochs} for epochs in (5, 50, 100, 250)},
}
"""What a preset sets; without a number of epochs it has nnU-Net's 1000."""


@pytest.mark.parametrize("name", ["GenSegTrainer", *presets.__all__])
def test_nnunet_finds_every_preset_and_it_sets_what_its_name_says(phantom, monkeypatch, name):
    monkeypatch.delenv("nnUNet_genseg_config")
    monkeypatch.setenv("nnUNet_extTrainer", external_trainers())
    trainer = make_trainer(recursive_find_trainer_class_by_name(name), *phantom, LENGTH)
    trainer.initialize()
    expected = {"num_epochs": 1000, **PRESETS[name]}
    found = {key: attrgetter(key)(trainer if key == "num_epochs" else trainer.genseg) for key in expected}
    assert found == expected
    assert trainer.output_folder_base.endswith(f"{name}__nnUNetPlans__2d")


def test_nnunet_finds_the_readmes_own_trainer(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (tmp_path / "my_trainers.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([external_trainers(), str(tmp_path)]))
    found = recursive_find_trainer_class_by_name("GenSegTrainerDA5")
    assert found is not None
    assert issubclass(found, nnUNetTrainerDA5)
    assert issubclass(found, GenSegMixin)
