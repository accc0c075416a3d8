"""What GenSeg adds to an iteration does not grow unnoticed. It is counted, not timed: a count is the same on every machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunetv2_genseg.trainers import GenSegTrainerShort, nnUNetTrainerShort
from operations import Counter, count_steps

from .conftest import make_trainer

WHAT = ("floating-point operations", "bytes", "backward passes", "waits for a number")
MEASURED = {
    "2d": {
        "warm-up": (1.141, 1.263, 2.0, 0.0),
        "ramp": (1.153, 1.285, 2.0, 0.375),
        "pairs and feedback": (1.34, 1.459, 2.25, 1.15),
        "tail": (1.0, 1.0, 1.0, 0.0),
    },
    "3d_fullres": {
        "warm-up": (1.142, 1.325, 2.0, 0.0),
        "ramp": (1.154, 1.363, 2.0, 0.375),
        "pairs and feedback": (1.272, 1.584, 2.25, 1.15),
        "tail": (1.0, 1.0, 1.0, 0.0),
    },
}
"""`WHAT` in a GenSeg iteration by plan and stage, relative to a stock iteration, which waits for no number: there the waits
themselves. Measured with torch 2.15."""
MARGIN = 1.05
ADVICE = """
In the stage {stage!r} of {plan}, the {what} of a GenSeg iteration are {found:.3f} of stock nnU-Net's; they were {known:.3f}.
`python benchmarks/parts.py` shows which part has grown. If that is meant, say why in the commit, write the new figure into
MEASURED, and measure the time anew (`python benchmarks/speed.py`). With another torch than 2.15 (this is {version}) the same code
may count differently: then measure the parent commit with it, too.
"""


def counted(trainer: Any, epoch: int, count: int) -> list[float]:
    """`WHAT` in an iteration, the mean of an epoch's first ones."""
    counter = Counter()
    count_steps(trainer, epoch, count, counter)
    return [value / count for value in (counter.flops, counter.bytes, counter.backward, counter.waits)]


@pytest.mark.parametrize(
    "dataset, plan", [("Dataset901_Phantom2D", "2d"), ("Dataset902_Phantom3D", "3d_fullres")], ids=["2d", "3d"]
)
def test_an_iteration_has_no_more_operations_than_before(dataset, plan, nnunet):
    from iterations import EPOCHS, moments

    trainers = []
    for kind in (nnUNetTrainerShort, GenSegTrainerShort):
        trainer: Any = make_trainer(kind, dataset, plan, f"{EPOCHS},20,1,{EPOCHS},0")
        trainer.on_train_start()
        trainer.logger.log = lambda *values: None  # it wants the epochs in their order
        counted(trainer, 0, 1)  # the first step of an optimiser differs
        trainers.append(trainer)
    stock, genseg = trainers
    assert genseg.num_iterations_per_epoch == genseg.genseg.feedback.interval
    base = counted(stock, 0, 1)
    assert base[2:] == [1, 0]
    stages = moments(genseg.genseg)
    found = {
        stage: [value / max(own, 1) for value, own in zip(counted(genseg, epoch, count), base, strict=True)]
        for stage, (epoch, count) in stages.items()
    }
    assert found.keys() == MEASURED[plan].keys()
    for stage, values in found.items():
        for what, value, known in zip(WHAT, values, MEASURED[plan][stage], strict=True):
            told = ADVICE.format(stage=stage, plan=plan, what=what, found=value, known=known, version=torch.__version__)
            assert value <= MARGIN * known, told
