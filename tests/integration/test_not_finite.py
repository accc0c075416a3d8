"""NaN and infinity in what the generator does: the segmentation network sees nothing of it, the training goes on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.bilevel.rollback import LIMIT
from nnunetv2_genseg.trainers import GenSegTrainerShort

from .conftest import TINY, make_trainer
from .test_trainer import PHANTOM_2D, log_of

ITERATIONS = 3
FAULTY = 6 * ITERATIONS + 1
"""An iteration with mixing, generator step and feedback, in the middle of an epoch."""
Undo = Callable[[], None]


def generator_of(trainer: nnUNetTrainer):
    return trainer.loop.sampler.sources["redraw"].generator


def spoil_drawing(trainer: nnUNetTrainer) -> Undo:
    """The synthetic images of a batch, not those of the feedback."""
    generator, sample = generator_of(trainer), trainer.loop.sample

    def spoilt(*arguments):
        draw = generator.sample
        generator.sample = lambda condition, style: draw(condition, style) / 0
        try:
            return sample(*arguments)
        finally:
            generator.sample = draw

    trainer.loop.sample = spoilt
    return lambda: setattr(trainer.loop, "sample", sample)


def spoil_generator(trainer: nnUNetTrainer) -> Undo:
    with torch.no_grad():
        generator_of(trainer).weights()[0].fill_(float("inf"))
    return lambda: None


def spoil_discriminator(trainer: nnUNetTrainer) -> Undo:
    with torch.no_grad():
        next(generator_of(trainer).discriminator.parameters()).fill_(float("nan"))
    return lambda: None


def spoil_feedback(trainer: nnUNetTrainer) -> Undo:
    next_batch = trainer._held_out.next_batch

    def spoilt():
        batch = next_batch()
        batch.network_input.fill_(float("inf"))
        return batch

    trainer._held_out.next_batch = spoilt
    return lambda: setattr(trainer._held_out, "next_batch", next_batch)


FAULTS = {
    spoil_drawing: ("a synthetic image is not finite or far brighter than the real ones", "real", 2),
    spoil_generator: ("feedback is not finite", "real", 1),
    spoil_discriminator: ("a gradient of the generator is not finite", "some synthetic", 2),
    spoil_feedback: ("feedback is not finite", "some synthetic", 1),
}
"""What the log says of a fault, which patches the segmentation network saw in that step, and in which iteration it is said: what
is known on the device alone is read an iteration later, and feedback that sees the fault before that undoes it alone."""
SETTINGS = {
    "feedback": {"interval": 1},
    "generator": {"interval": 1},
    "mixing": {"sources": {"redraw": 1.0}},
}


def flat(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else []
    return [tensor for value in values for tensor in flat(value)]


def learned(trainer: nnUNetTrainer) -> list[torch.Tensor]:
    return flat(trainer.loop.rollback._state())


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_a_fault_leaves_the_segmentation_network_alone_is_logged_and_undone(nnunet, settings, spoil):
    message, sees, said = FAULTS[spoil]
    settings(SETTINGS)
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, f"10,{ITERATIONS},1,4,0", plans_name=TINY)
    trainer.initialize()
    step, check, seen = trainer.train_step, trainer.loop.check, {}

    def watched_check():
        result = check()
        if trainer._global_iteration() == FAULTY + 1:
            seen["after"] = learned(trainer)
        return result

    def watched(batch):
        now = trainer._global_iteration()
        if now % ITERATIONS == 0 and now < FAULTY:
            seen["good"] = learned(trainer)  # as at the end of the last whole epoch
        if now != FAULTY:
            return step(batch)
        network, optimizer = (copy.deepcopy(part.state_dict()) for part in (trainer.network, trainer.optimizer))
        mended = spoil(trainer)
        result = step(batch)
        mended()
        found = copy.deepcopy(trainer.network.state_dict())
        following = copy.deepcopy(trainer.optimizer.state_dict())
        trainer.network.load_state_dict(network)
        trainer.optimizer.load_state_dict(optimizer)
        nnUNetTrainer.train_step(trainer, batch)  # the same step with real patches alone
        seen["alike"] = all(torch.equal(found[name], value) for name, value in trainer.network.state_dict().items())
        trainer.network.load_state_dict(found)
        trainer.optimizer.load_state_dict(following)
        return result

    trainer.train_step, trainer.loop.check = watched, watched_check
    trainer.run_training()
    for kept, now in zip(seen["good"], seen["after"], strict=True):
        assert torch.equal(kept, now), "the generator, its optimisers and the policy are back at their last finite state"
    assert seen["alike"] == (sees == "real"), "where pairs are not finite, the step is that on real patches alone"
    assert all(torch.isfinite(value).all() for value in trainer.network.state_dict().values())
    assert f"GenSeg: epoch 6, iteration {said}: {message}" in log_of(trainer)
    assert 1 <= log_of(trainer).count("returns to its last finite state") <= 2
    rows = {int(row["epoch"]): row for row in trainer.recorder.progress.rows}
    assert math.isfinite(rows[7]["l1"])
    assert rows[7]["acceptance_rate"] > 0, "synthetic pairs go on"
    assert rows[7]["hypergradient_norm"] > 0
    assert trainer.loop.rollback.faults == 0, "an epoch without a fault starts the count anew"


def test_a_fault_that_does_not_stop_ends_the_training_with_the_reason(nnunet, settings):
    settings(SETTINGS)
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, f"10,{ITERATIONS},1,4,0", plans_name=TINY)
    trainer.initialize()
    spoil_drawing(trainer)
    with pytest.raises(FloatingPointError, match=f"returned to its last finite state {LIMIT} times"):
        trainer.run_training()
    assert all(torch.isfinite(value).all() for value in trainer.network.state_dict().values())
    assert log_of(trainer).count("returns to its last finite state") == LIMIT


def test_a_generator_that_is_not_finite_when_an_epoch_ends_returns_to_the_last_state(nnunet, settings):
    settings({"schedule": {"warmup": 0.5, "ramp": 0.0, "tail": 0.0}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "4,2,1,9,0", plans_name=TINY)
    step = trainer.train_step

    def spoilt(batch):
        result = step(batch)
        if trainer.current_epoch == 1 and trainer._iteration == 2:
            spoil_generator(trainer)
        return result

    trainer.train_step = spoilt
    trainer.run_training()
    assert "GenSeg: epoch 1, iteration 2: the generator's state holds NaN or infinity" in log_of(trainer)
    assert math.isfinite(trainer.recorder.progress.rows[-1]["l1"])
