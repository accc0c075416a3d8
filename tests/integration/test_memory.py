"""A long training holds no more memory at its end than at its start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .memory import BOUND, EVERY, ITERATIONS, PATCH_BATCH, WARM_UP, long_training
from .processes import memory_slope

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def test_the_slope_of_a_leak_of_one_batch_an_iteration_is_found():
    noise = np.random.default_rng(0).normal(0, 1e6, ITERATIONS // EVERY)
    leaking = [(EVERY * i, int(3e8 + EVERY * i * PATCH_BATCH + noise[i])) for i in range(len(noise))]
    assert memory_slope(leaking, WARM_UP) == pytest.approx(PATCH_BATCH, rel=0.1)


@pytest.mark.parametrize("device", DEVICES)
def test_memory_does_not_grow_with_the_iterations(workspace, tmp_path, device):
    """The bound is an eighth of what a leak of one batch of patches an iteration would give."""
    outcome = long_training(workspace, tmp_path, device).run()
    assert outcome.exit_status == 0, outcome.trace
    assert len(outcome.memory) == ITERATIONS // EVERY
    assert memory_slope(outcome.memory, WARM_UP) < BOUND
