"""Steps that are tried before a training begins and leave no trace in it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.random_state import own_random_state
from nnunetv2_genseg.trainers.holdout import WITHOUT_FEEDBACK

FULL = ("out of memory", "ALLOC_FAILED")
"""What the errors of the libraries below torch contain when a GPU's memory is full."""


@contextmanager
def restored_afterwards(loop: BilevelLoop, device: torch.device, *parts: Any) -> Iterator[None]:
    """After the block, the loop, `parts` and the global random states are as they were before it.

    Meanwhile their states are in main memory, so that as much of the GPU's memory is free as in the training.

    Args:
        loop: the bilevel training loop.
        device: where the loop and the parts are.
        parts: with `state_dict` and `load_state_dict`, such as networks and optimisers.
    """
    kept, generators = io.BytesIO(), (loop.rng, loop.slot_rng)
    # the loop's own state holds the first process's random state, where there are several
    drawn = [generator.get_state() for generator in generators]
    torch.save((loop.state_dict(), [part.state_dict() for part in parts]), kept)
    try:
        with own_random_state(0, device):
            yield
    finally:
        kept.seek(0)
        own, states = torch.load(kept, map_location="cpu", weights_only=False)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        loop.load_state_dict(own)
        for generator, state in zip(generators, drawn, strict=True):
            generator.set_state(state)
        loop.meter.clear()


def memory_is_full(error: RuntimeError) -> bool:
    """Whether an error says that a GPU's memory does not hold something."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in FULL)


@contextmanager
def feedback_explained(trainer: Any) -> Iterator[None]:
    """Inside the block, what ends a feedback step becomes a message of what the feedback needs."""
    try:
        yield
    except (FloatingPointError, GenSegError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and memory_is_full(error):
            raise
        raise GenSegError(
            "feedback needs a network that is a function of the image and a loss of logits and target alone; with "
            f"{type(trainer).__name__} it ends with {type(error).__name__}: {error}. Train without feedback: {WITHOUT_FEEDBACK}"
        ) from error


def try_feedback(trainer: Any) -> None:
    """Takes one feedback step and undoes it, so that a network or loss that allows none is told at once.

    Args:
        trainer: a GenSeg trainer of nnU-Net, its data loaders built.

    Raises:
        GenSegError: the trainer's network or loss does not allow what the feedback needs.
    """
    progress = trainer._progress_of(trainer._global_iteration())
    if not trainer.genseg.feedback.enabled or progress >= trainer.genseg.feedback_span[1]:
        return
    with restored_afterwards(trainer.loop, trainer.device, trainer._plain_network()):
        held_out = trainer._held_out.next_batch()
        image = held_out.network_input[:, : trainer._batches.image_channels]
        with feedback_explained(trainer):
            trainer._feedback_step(image, held_out.labels)
