"""The trainer that GenSeg is added to trains as it does without it (kind: a host trainer's step is its own)."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.robust_ce_loss import TopKLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus
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
from skimage.morphology import skeletonize

from nnunetv2_genseg.cli import external_trainers
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers import GenSegMixin, GenSegTrainerShort, batches
from nnunetv2_genseg.trainers.short import ShortTraining

from .conftest import DATASET_ID, make_trainer
from .datasets import Kind, plan
from .test_trainer import AT_ONCE
from .trainings import LENGTH, STAGES, checkpoint_of, predict, train_and_resume


def with_genseg(host: type[nnUNetTrainer]) -> type[nnUNetTrainer]:
    """`class Mixed(GenSegMixin, host)`, of a length that the environment sets."""
    return type("Mixed", (ShortTraining, GenSegMixin, host), {})


def transforms_of(trainer: nnUNetTrainer) -> set[str]:
    transforms = trainer.dataloader_train.data_loader.transforms.transforms
    return {type(getattr(step, "transform", step)).__name__ for step in transforms}


def no_supervision_below(trainer: nnUNetTrainer) -> bool:
    target = next(trainer.dataloader_train)["target"]
    return isinstance(target, torch.Tensor) and not isinstance(trainer.loss, DeepSupervisionWrapper)


def statistics_of_real_and_mixed_batches(trainer: nnUNetTrainer) -> bool:
    """Batch norm saw the network's own steps and no others, such as the feedback's."""
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
    nnUNetTrainerTopk10Loss: lambda trainer: isinstance(trainer.loss.loss, TopKLoss),
    nnUNetTrainerBN: statistics_of_real_and_mixed_batches,
}
"""Trainers of nnU-Net, each of which changes another hook, and whether a trainer still behaves like it."""


@pytest.mark.parametrize(("host", "holds"), HOSTS.items(), ids=[host.__name__ for host in HOSTS])
def test_is_added_to_any_trainer_in_one_line(phantom, folder, host, holds):
    trainer = train_and_resume(with_genseg(host), *phantom)
    assert holds(trainer)
    assert checkpoint_of(trainer)["trainer_name"] == host.__name__
    predict(trainer, folder / "predictions")


class Accumulating(nnUNetTrainer):
    """Adds the gradients of single patches, and counts how often every case was drawn."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.drawn: list[str] = [*getattr(self, "drawn", []), *batch["keys"]]
        data, target = batch["data"], batch["target"]
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for i in range(len(data)):
            loss = self.loss(self.network(data[i : i + 1]), [level[i : i + 1] for level in target]) / len(data)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return {"loss": np.array(total)}


def test_a_trainer_with_a_step_of_its_own_takes_that_step(phantom, folder):
    """Which calls the loss with single patches and reads more of the batch than image and target."""
    trainer = train_and_resume(with_genseg(Accumulating), *phantom)
    assert len(trainer.drawn) == 4 * trainer.batch_size
    assert checkpoint_of(trainer)["trainer_name"] == "Accumulating"


class WithMap(nnUNetTrainer):
    """A trainer whose batches hold a further map, the image's first channel: so it is seen whether it follows the image."""

    key = "weight_map"

    def get_dataloaders(self) -> Any:
        training, validation = super().get_dataloaders()
        own = type(training).__next__
        training.__class__ = type("WithMap", (type(training),), {"__next__": lambda loader: self.with_map(own(loader))})
        return training, validation

    def with_map(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {self.key: batch["data"][:, :1].clone()}

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = [
            *getattr(self, "seen", []),
            (batch["data"][:, :1].clone(), batch[self.key]),
        ]
        return super().train_step(batch)


class SkeletonRecall(WithMap):
    """As the trainers of skeleton recall: the skeletons of the labels come with the batch, and the loss takes them too."""

    key = "skel"

    def with_map(self, batch: dict[str, Any]) -> dict[str, Any]:
        labels = batch["target"][0][:, 0].numpy() > 0
        skeletons = np.stack([skeletonize(patch) for patch in labels])
        return batch | {self.key: torch.from_numpy(skeletons[:, None].astype(np.int16))}

    def _build_loss(self) -> torch.nn.Module:
        return SkeletonLoss(super()._build_loss())

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.seen = [*getattr(self, "seen", []), (batch["target"][0], batch[self.key])]
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss(self.network(batch["data"]), batch["target"], batch[self.key])
        value.backward()
        self.optimizer.step()
        return {"loss": value.detach().numpy()}

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        loss, self.loss = self.loss, self.loss.usual
        try:
            return super().validation_step(batch)
        finally:
            self.loss = loss


class SkeletonLoss(torch.nn.Module):
    """nnU-Net's loss, and the recall of foreground on the skeletons."""

    def __init__(self, usual: torch.nn.Module) -> None:
        super().__init__()
        self.usual = usual

    def forward(self, logits: Any, target: Any, skeletons: torch.Tensor) -> torch.Tensor:
        foreground = 1 - logits[0].softmax(dim=1)[:, :1]
        recall = (foreground * skeletons).sum() / skeletons.sum().clamp(min=1)
        return self.usual(logits, target) + 1 - recall


class MeanTeacher(nnUNetTrainer):
    """Consistency with a moving average of the network: two networks, and the loss is more than one call."""

    def initialize(self) -> None:
        super().initialize()
        self.teacher, self.updates = copy.deepcopy(self.network).requires_grad_(False), 0

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        data = batch["data"]
        self.optimizer.zero_grad(set_to_none=True)
        student = self.network(data + 0.1 * torch.randn_like(data))
        consistency = (student[0].softmax(dim=1) - self.teacher(data)[0].softmax(dim=1)).square().mean()
        value = self.loss(student, batch["target"]) + consistency
        value.backward()
        self.optimizer.step()
        self.updates += 1
        for average, weight in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            average.lerp_(weight.detach(), 0.1)
        return {"loss": value.detach().numpy()}


class TwoConvolutions(torch.nn.Sequential):
    """A network that is no U-Net, as a user's plans may name one."""

    def __init__(self, input_channels: int, num_classes: int, width: int, deep_supervision: bool) -> None:
        first, last = torch.nn.Conv2d(input_channels, width, 3, padding=1), torch.nn.Conv2d(width, num_classes, 1)
        super().__init__(first, torch.nn.SiLU(), last)


class WithoutDecoder(nnUNetTrainerNoDeepSupervision):
    """For networks without a decoder that deep supervision could be set in."""

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none."""


class SmallPrimus(AbstractPrimus):
    """nnU-Net's trainer of the transformer Primus, with a small one."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.warmup_duration_whole_net = 2

    @staticmethod
    def build_network_architecture(
        plans_manager: Any, configuration: Any, inputs: int, outputs: int, enable_deep_supervision: bool = True
    ) -> torch.nn.Module:
        return Primus(inputs, 24, (8, 8, 8), outputs, 2, 2, configuration.patch_size, drop_path_rate=0.2, init_values=0.1)


ONLY_DEFORMED = {
    "schedule": AT_ONCE,
    "mixing": {"sources": {"deformation": 1.0}},
    "intensity": {"tone": 0.0},
    "feedback": {"enabled": False},
}


def test_a_map_that_no_rule_is_known_for_is_refused_at_the_first_batch_by_its_name(phantom, settings):
    settings({})
    trainer = make_trainer(with_genseg(WithMap), *phantom, LENGTH)
    with pytest.raises(ValueError, match=r"hold the map 'weight_map'.*SPATIAL_ENTRIES\['weight_map'\] to `nearest` or `linear`"):
        trainer.run_training()
    assert trainer.current_epoch == 0
    assert not hasattr(trainer, "seen"), "no step was taken"


def test_a_map_follows_the_deformation_of_its_image_by_its_rule(phantom, settings, monkeypatch):
    settings(ONLY_DEFORMED)
    monkeypatch.setitem(batches.SPATIAL_ENTRIES, "weight_map", batches.linear)
    trainer = make_trainer(with_genseg(WithMap), *phantom, "2,4,1,9,0")
    given = []
    step = trainer.train_step
    trainer.train_step = lambda batch: (given.append(batch["data"][:, :1]), step(batch))[1]
    trainer.run_training()
    changed = 0
    for before, (image, followed) in zip(given, trainer.seen, strict=True):
        distance, moved = ((one - other).abs().mean() for one, other in ((followed, image), (before, image)))
        assert distance < 0.1 * image.std(), "the image is interpolated more sharply than a map"
        assert distance < 0.5 * moved or moved == 0
        changed += sum(not torch.equal(one, other) for one, other in zip(before, image, strict=True))
    assert 0 < changed < 8 * trainer.batch_size


def test_skeletons_follow_the_deformation_of_their_labels(phantom, settings, monkeypatch):
    settings(ONLY_DEFORMED)
    monkeypatch.setitem(batches.SPATIAL_ENTRIES, "skel", batches.nearest)
    trainer = make_trainer(with_genseg(SkeletonRecall), *phantom, "2,4,1,9,0")
    trainer.run_training()
    assert len(trainer.seen) == 8
    assert all((target[skeletons > 0] > 0).all() for target, skeletons in trainer.seen)
    assert sum(int(skeletons.sum()) for _, skeletons in trainer.seen) > 100


def test_a_loss_that_the_feedback_cannot_call_is_refused_before_the_first_step(phantom, settings, monkeypatch):
    settings({})
    monkeypatch.setitem(batches.SPATIAL_ENTRIES, "skel", batches.nearest)
    trainer = make_trainer(with_genseg(SkeletonRecall), *phantom, LENGTH)
    with pytest.raises(GenSegError, match=r"a loss of logits and target alone; with Mixed it ends with TypeError: .*'skeletons'"):
        trainer.run_training()
    assert not hasattr(trainer, "seen")
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "Traceback" in log and "TypeError" in log.partition("Traceback")[2], "what it ended with can be found"


def trained(host: type[nnUNetTrainer], *arguments: Any) -> nnUNetTrainer:
    """Trains with GenSeg through all stages, an iteration each; there must be feedback."""
    trainer = make_trainer(with_genseg(host), *arguments, "5,1,1,9,0")
    trainer.run_training()
    rows = trainer.recorder.progress.rows
    assert [row.get("hypergradient_norm", 0) > 0 for row in rows] == [False, False, True, True, False]
    return trainer


def test_a_mean_teacher_follows_its_student(phantom):
    assert trained(MeanTeacher, *phantom).updates == 5, "the step that was tried at the start is not among them"


def of_two_convolutions(plans: dict[str, Any]) -> None:
    plans["configurations"]["2d"]["architecture"] = {
        "network_class_name": f"{__name__}.TwoConvolutions",
        "arch_kwargs": {"width": 8},
        "_kw_requires_import": [],
    }


@pytest.fixture
def own_plans(folder: Path, settings: Callable[[dict[str, Any]], None]) -> tuple[str, str]:
    """A dataset whose plans name a network without stages."""
    settings(STAGES | {"generator": {"interval": 1, "width": 0.05}})
    raw = Kind().write(folder / "nnUNet_raw", DATASET_ID)
    plan(DATASET_ID, "2d", edit=of_two_convolutions)
    return raw.name, "2d"


def test_a_network_of_ones_own_in_the_plans_is_trained(own_plans):
    trainer = trained(WithoutDecoder, *own_plans)
    assert isinstance(trainer.network, TwoConvolutions)
    assert trainer.loop.plan.features == (32, 64, 128, 256)


def test_nnunets_primus_is_trained(folder, settings):
    settings(STAGES)
    raw = Kind(dims=3).write(folder / "nnUNet_raw", DATASET_ID)
    plan(DATASET_ID, "3d_fullres", edit=lambda plans: plans["configurations"]["3d_fullres"].update(patch_size=[16, 16, 16]))
    assert isinstance(
        trained(SmallPrimus, raw.name, "3d_fullres").network, Primus
    )  # nnU-Net's own --c of it fails from torch 2.6 on


class OwnNetwork(GenSegTrainerShort):
    """A trainer with a network of its own."""

    @staticmethod
    def build_network_architecture(plans_manager: Any, *arguments: Any, **options: Any) -> torch.nn.Module:
        network = nnUNetTrainer.build_network_architecture(plans_manager, *arguments, **options)
        network.encoder.stages[0] = torch.nn.Sequential(network.encoder.stages[0], torch.nn.InstanceNorm2d(8, affine=True))
        return network


def test_a_trainer_with_a_network_of_its_own_is_named_in_the_checkpoint_and_predicts(phantom, folder, monkeypatch):
    """By its own name: no trainer of nnU-Net builds that network."""
    trainer = train_and_resume(OwnNetwork, *phantom)
    assert checkpoint_of(trainer)["trainer_name"] == "OwnNetwork"
    monkeypatch.setattr(
        predict_from_raw_data, "recursive_find_trainer_class_by_name", lambda name: {"OwnNetwork": OwnNetwork}[name]
    )
    predict(trainer, folder / "predictions")


def test_nnunet_finds_the_documentation_s_own_trainer(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "other-trainer.md").read_text()
    (tmp_path / "my_trainers.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([external_trainers(), str(tmp_path)]))
    found = recursive_find_trainer_class_by_name("GenSegTrainerTopk10")
    assert found is not None
    assert issubclass(found, nnUNetTrainerTopk10Loss)
    assert issubclass(found, GenSegMixin)
