"""The largest steps are tried before a training begins: without a trace, and what does not fit is said at once."""

from __future__ import annotations

import weakref
from unittest.mock import Mock

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers import GenSegTrainerDiffusion, GenSegTrainerShort
from nnunetv2_genseg.trainers.memory_check import try_largest_steps

from .conftest import TINY, make_trainer, resume, weights_of
from .processes import differences
from .test_trainer import EVERY_STEP, PHANTOM_2D, PHANTOM_3D, log_of, trained

TRIED = {
    "gan": (PHANTOM_3D, "nnUNetPlans", EVERY_STEP),
    "policy": (PHANTOM_2D, TINY, {"feedback": {"interval": 1, "parameters": "policy"}, "masks": {"source": "shape_vae"}}),
    "diffusion": (
        PHANTOM_2D,
        TINY,
        {"generator": GenSegTrainerDiffusion.preset["generator"], "feedback": {"interval": 1, "parameters": "weights"}},
    ),
}


class ScalingTrainer(GenSegTrainerShort):
    """Scales its loss, as nnU-Net's trainer does on a GPU."""

    def initialize(self) -> None:
        self.grad_scaler = torch.amp.GradScaler("cpu")
        super().initialize()


@pytest.mark.parametrize("case", TRIED)
def test_steps_tried_before_a_training_leave_no_trace_in_it(nnunet, settings, monkeypatch, case):
    """Neither at its start nor where it is resumed, in the midst of feedback."""
    data, plans, chosen = TRIED[case]
    settings(chosen)
    length = "10,1,1,1,5"
    plain = trained(make_trainer(ScalingTrainer, *data, length, plans_name=plans))

    begin, tried = ScalingTrainer.on_train_start, []

    def trying(trainer):
        begin(trainer)
        before = len(tried)
        try_largest_steps(trainer)
        assert set(tried[before:]) == {"sample", "segmenter", "generator", "feedback"}
        del tried[before:]

    monkeypatch.setattr(ScalingTrainer, "on_train_start", trying)
    for name, owner, method in (
        ("segmenter", nnUNetTrainer, "train_step"),
        ("sample", BilevelLoop, "sample"),
        ("generator", BilevelLoop, "training_step"),
        ("feedback", BilevelLoop, "feedback_step"),
    ):
        own = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *args, name=name, own=own: (tried.append(name), own(*args))[1])
    monkeypatch.setenv("nnUNet_results", str(nnunet / "tried"))
    trained(make_trainer(ScalingTrainer, *data, length, plans_name=plans), epochs=5)
    second = trained(resume(ScalingTrainer, *data, length, plans_name=plans))

    assert not list(differences(weights_of(plain), weights_of(second)))
    assert not list(differences(plain.loop.state_dict(), second.loop.state_dict()))
    assert not list(differences(plain.grad_scaler.state_dict(), second.grad_scaler.state_dict()))
    assert not list(differences(plain.optimizer.state_dict(), second.optimizer.state_dict()))
    assert plain.recorder.progress.rows == second.recorder.progress.rows


def test_maps_without_a_rule_are_refused_where_the_steps_are_tried(about_to_train):
    batch = next(about_to_train.dataloader_train)
    about_to_train.dataloader_train = iter([batch | {"skeleton": batch["target"][0]}])
    with pytest.raises(GenSegError, match="the map 'skeleton'"):
        try_largest_steps(about_to_train)


@pytest.fixture
def about_to_train(nnunet, settings):
    settings({})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "5,2,1,9,0", plans_name=TINY)
    trainer.on_train_start()
    return trainer


@pytest.mark.parametrize(("owner", "method", "remedy"), [
    (BilevelLoop, "sample", "start anew with generator: {width: 0.25} or a smaller batch"),
    (nnUNetTrainer, "train_step", "start anew with generator: {width: 0.25} or a smaller batch"),
    (BilevelLoop, "training_step", "start anew with generator: {width: 0.25} or a smaller batch"),
    (BilevelLoop, "feedback_step", "feedback: {patches: 1} needs less, feedback: {enabled: false} nothing"),
])  # fmt: skip
def test_memory_that_does_not_hold_a_later_step_is_said_at_once(about_to_train, monkeypatch, owner, method, remedy):
    trainer = about_to_train
    activations = torch.zeros(9)
    alive, own = weakref.ref(activations), [activations]
    del activations

    def full(*args):
        held = own.pop()
        raise RuntimeError(f"CUDNN_STATUS_ALLOC_FAILED {len(held)}")

    def restore(state, own=trainer.loop.load_state_dict):
        assert alive() is None, "what filled the memory is gone before anything is put back"
        own(state)

    monkeypatch.setattr(owner, method, full)
    monkeypatch.setattr(trainer.loop, "load_state_dict", restore)
    with pytest.raises(GenSegError, match=f"not hold this training to its end; {remedy}.*ALLOC_FAILED 9"):
        try_largest_steps(trainer)


def test_steps_that_cannot_be_tried_are_said(about_to_train, monkeypatch):
    monkeypatch.setattr(BilevelLoop, "sample", Mock(side_effect=FloatingPointError("infinite")))
    try_largest_steps(about_to_train)
    assert "not all of the largest steps could be tried: infinite" in log_of(about_to_train)


def test_other_errors_of_the_steps_tried_are_not_taken_for_a_lack_of_memory(about_to_train, monkeypatch):
    monkeypatch.setattr(BilevelLoop, "training_step", Mock(side_effect=RuntimeError("wrong shape")))
    with pytest.raises(RuntimeError, match="wrong shape"):
        try_largest_steps(about_to_train)
