"""What is tried before a training begins and leaves no trace in it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nnunetv2_genseg.checkpoint import own_random_state
from nnunetv2_genseg.coupling import Coupling

FULL = ("out of memory", "ALLOC_FAILED")
"""How the libraries below torch say that a GPU's memory is full."""


@contextmanager
def undone(coupling: Coupling, device: torch.device, *parts: Any) -> Iterator[None]:
    """What happens inside the block to the generator, to `parts` and to the global random states is undone after it.

    Meanwhile what they were lies in main memory, so that the GPU's is as free as in the training.

    Args:
        coupling: the generator and what belongs to it.
        device: where they live.
        parts: with `state_dict` and `load_state_dict`, as of networks and optimisers.
    """
    kept, drawn = io.BytesIO(), coupling.rng.get_state()
    torch.save((coupling.state(), [part.state_dict() for part in parts]), kept)
    try:
        with own_random_state(0, device):
            yield
    finally:
        kept.seek(0)
        generator, states = torch.load(kept, map_location="cpu", weights_only=False)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        coupling.restore(generator)
        coupling.rng.set_state(drawn)  # another process's than the one in `state`, where there are several
        coupling.losses.clear()


def memory_is_full(error: RuntimeError) -> bool:
    """Whether an error says that a GPU's memory does not hold something."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in FULL)
