"""NaN and infinity in what the generator does: the segmenter sees nothing of it, the training goes on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.recovery import LIMIT
from nnunetv2_genseg.trainers import GenSegTrainerShort

from .conftest import make_trainer

PHANTOM_2D = ("Dataset901_Phantom2D", "2d")
ITERATIONS = 3
FAULTY = 6 * ITERATIONS + 1
"""An iteration with mixing, generator step and feedback, in the middle of an epoch."""
Undo = Callable[[], None]


def spoil_drawing(trainer: nnUNetTrainer) -> Undo:
    generator = trainer.coupling.generator
    draw = generator.draw
    generator.draw = lambda condition, style: draw(condition, style) / 0
    return lambda: setattr(generator, "draw", draw)


def spoil_generator(trainer: nnUNetTrainer) -> Undo:
    with torch.no_grad():
        trainer.coupling.generator.weights()[0].fill_(float("inf"))
    return lambda: None


def spoil_discriminator(trainer: nnUNetTrainer) -> Undo:
    with torch.no_grad():
        next(trainer.coupling.generator.discriminator.parameters()).fill_(float("nan"))
    return lambda: None


def spoil_synthetic_loss(trainer: nnUNetTrainer) -> Undo:
    loss = trainer.loss.loss
    trainer.loss.loss = SecondIsNan(loss)
    return lambda: setattr(trainer.loss, "loss", loss)


class SecondIsNan(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.inner, self.calls = loss, 0

    def forward(self, output, target):
        self.calls += 1
        return self.inner(output, target) * (float("nan") if self.calls == 2 else 1)


def spoil_feedback(trainer: nnUNetTrainer) -> Undo:
    batch = trainer._feedback_batch

    def spoilt():
        image, labels = batch()
        return image.fill_(float("inf")), labels

    trainer._feedback_batch = spoilt
    return lambda: setattr(trainer, "_feedback_batch", batch)


FAULTS = {
    spoil_drawing: ("a synthetic image holds NaN, infinity or", "real"),
    spoil_generator: ("a synthetic image holds NaN, infinity or", "real"),
    spoil_synthetic_loss: ("the segmentation loss of synthetic patches is nan, that of the real ones", "real"),
    spoil_discriminator: ("a gradient of the generator's training is not finite", "mixed"),
    spoil_feedback: ("feedback is not finite", "mixed"),
}


def flat(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else []
    return [tensor for value in values for tensor in flat(value)]


def learned(trainer: nnUNetTrainer) -> list[torch.Tensor]:
    return flat(trainer.coupling.recovery._state())


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_a_fault_leaves_the_segmenter_alone_is_logged_and_undone(nnunet, settings, spoil):
    message, sees = FAULTS[spoil]
    settings({"feedback": {"interval": 1}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, f"10,{ITERATIONS},1,4,0")
    step, seen = trainer.train_step, {}

    def watched(batch):
        now = trainer._global_iteration()
        if now % ITERATIONS == 0 and now < FAULTY:
            seen["good"] = learned(trainer)  # as at the end of the last whole epoch
        if now != FAULTY:
            return step(batch)
        segmenter, optimizer = (copy.deepcopy(part.state_dict()) for part in (trainer.network, trainer.optimizer))
        mended = spoil(trainer)
        result = step(batch)
        mended()
        seen["after"] = learned(trainer)
        found = copy.deepcopy(trainer.network.state_dict())
        if sees == "real":  # the same step with real patches alone
            following = copy.deepcopy(trainer.optimizer.state_dict())
            trainer.network.load_state_dict(segmenter)
            trainer.optimizer.load_state_dict(optimizer)
            nnUNetTrainer.train_step(trainer, batch)
            seen["alike"] = all(torch.equal(found[name], value) for name, value in trainer.network.state_dict().items())
            trainer.optimizer.load_state_dict(following)
        return result

    trainer.train_step = watched
    trainer.run_training()
    for kept, now in zip(seen["good"], seen["after"], strict=True):
        assert torch.equal(kept, now), "the generator, its optimisers and the policy are back at their last good state"
    assert seen.get("alike", True), "the segmenter took the step that it would have taken on real patches alone"
    assert all(torch.isfinite(value).all() for value in trainer.network.state_dict().values())
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert f"GenSeg: epoch 6, iteration 1: {message}" in log
    assert log.count("last good state") == 1
    rows = {int(row["epoch"]): row for row in trainer.progress.rows}
    assert math.isfinite(rows[7]["synthetic"]), "synthetic pairs go on"
    assert rows[7]["hypergradient"] > 0
    assert trainer.coupling.recovery.faults == 0, "an epoch without a fault starts the count anew"


def test_a_fault_that_does_not_stop_ends_the_training_with_the_reason(nnunet, settings):
    settings({"feedback": {"interval": 1}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, f"10,{ITERATIONS},1,4,0")
    trainer.initialize()
    spoil_drawing(trainer)
    with pytest.raises(FloatingPointError, match=f"put back to its last good state {LIMIT} times"):
        trainer.run_training()
    assert all(torch.isfinite(value).all() for value in trainer.network.state_dict().values())
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert log.count("last good state") == LIMIT + 1


def test_a_generator_that_is_not_finite_when_an_epoch_ends_is_put_back(nnunet, settings):
    settings({"schedule": {"warmup": 0.5, "ramp": 0.0, "tail": 0.0}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "4,2,1,9,0")
    step = trainer.train_step

    def spoilt(batch):
        result = step(batch)
        if trainer.current_epoch == 1 and trainer._iteration == 2:
            spoil_generator(trainer)
        return result

    trainer.train_step = spoilt
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "GenSeg: epoch 1, iteration 2: the generator's state holds NaN or infinity" in log
    assert math.isfinite(trainer.progress.rows[-1]["synthetic"])
