"""The trainer that GenSeg is added to trains as it does without: its own step, loss, augmentation, network and batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference import predict_from_raw_data
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

from nnunetv2_genseg.cli import external_trainers
from nnunetv2_genseg.trainers import GenSegMixin, GenSegTrainerShort, batches
from nnunetv2_genseg.trainers.short import ShortTraining

from .conftest import make_trainer
from .test_trainer import AT_ONCE
from .trainings import LENGTH, checkpoint_of, predict, train_and_resume


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

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = [
            *getattr(self, "seen", []),
            (batch["data"][:, :1].clone(), batch["weight_map"]),
        ]
        return super().train_step(batch)


def add_map(trainer: nnUNetTrainer) -> None:
    loaded = trainer.get_dataloaders

    def with_map() -> Any:
        training, validation = loaded()
        own = type(training).__next__
        kind = type("WithMap", (type(training),), {"__next__": lambda self: added(own(self))})
        training.__class__ = kind
        return training, validation

    def added(batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"weight_map": batch["data"][:, :1].clone()}

    trainer.get_dataloaders = with_map


ONLY_DEFORMED = {
    "schedule": AT_ONCE,
    "mixing": {"sources": {"deformation": 1.0}},
    "intensity": {"tone": 0.0},
    "feedback": {"enabled": False},
}


def test_a_map_that_no_rule_is_known_for_is_refused_at_the_first_batch_by_its_name(phantom, settings):
    settings({})
    trainer = make_trainer(with_genseg(WithMap), *phantom, LENGTH)
    add_map(trainer)
    with pytest.raises(ValueError, match=r"hold the map 'weight_map'.*SPATIAL_ENTRIES\['weight_map'\] to `nearest` or `linear`"):
        trainer.run_training()
    assert trainer.current_epoch == 0
    assert not hasattr(trainer, "seen"), "no step was taken"


def test_a_map_follows_the_deformation_of_its_image_by_its_rule(phantom, settings, monkeypatch):
    settings(ONLY_DEFORMED)
    monkeypatch.setitem(batches.SPATIAL_ENTRIES, "weight_map", batches.linear)
    trainer = make_trainer(with_genseg(WithMap), *phantom, "2,4,1,9,0")
    add_map(trainer)
    given = []
    step = trainer.train_step
    trainer.train_step = lambda batch: (given.append(batch["data"][:, :1]), step(batch))[1]
    trainer.run_training()
    changed = 0
    for before, (image, followed) in zip(given, trainer.seen, strict=True):
        torch.testing.assert_close(followed, image)
        changed += sum(not torch.equal(one, other) for one, other in zip(before, image, strict=True))
    assert 0 < changed < 8 * trainer.batch_size


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


def test_nnunet_finds_the_readmes_own_trainer(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (tmp_path / "my_trainers.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([external_trainers(), str(tmp_path)]))
    found = recursive_find_trainer_class_by_name("GenSegTrainerDA5")
    assert found is not None
    assert issubclass(found, nnUNetTrainerDA5)
    assert issubclass(found, GenSegMixin)
