"""A long training and what a leak in it would look like."""

from __future__ import annotations

from pathlib import Path

from .conftest import Workspace
from .processes import Training

ITERATIONS, EPOCHS, WARM_UP, EVERY = 2000, 20, 500, 10
SETTINGS = {
    "schedule": {"warmup": 0.05, "ramp": 0.05, "tail": 0.0},
    "feedback": {"start": 0.1, "interval": 5},
}
PATCH_BATCH = 2 * 3 * 32 * 32 * 4
"""Bytes of the real images of one batch: the slope, in bytes an iteration, of a leak of them."""
BOUND = PATCH_BATCH / 8


def long_training(workspace: Workspace, results: Path, device: str = "cpu") -> Training:
    """Mixing from its twentieth part on, a feedback step every fifth iteration, data loading in the process."""
    length = f"{EPOCHS},{ITERATIONS // EPOCHS},1,{EPOCHS},0"  # of an epoch nnU-Net keeps every loss until it ends
    return Training(workspace, results, length=length, settings=SETTINGS, memory_every=EVERY, device=device)
