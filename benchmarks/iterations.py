"""Time and memory of training iterations in every stage of the schedule, stock nnU-Net and GenSeg in turns."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from building import build_trainer, without_pictures
from nnunetv2_genseg.config import GenSegConfig

KINDS = {"stock": "nnUNetTrainerShort", "genseg": "GenSegTrainerShort"}
EPOCHS = 100
"""Of the training whose moments are measured: an epoch is a hundredth of the schedule."""
BLOCK = 8
"""Iterations of a block where no feedback is due; with feedback, one feedback interval."""
HELD = 6
"""Batches that are loaded before on a GPU."""


@dataclass(frozen=True)
class Subject:
    """What is trained on, and how often it is measured."""

    folder: str
    """With nnU-Net's `preprocessed` folder."""
    number: str
    configuration: str
    device: str
    model: str
    """Folder for results."""
    turns: int = 5
    most: int = 1000
    """Iterations of a block at most, to try the benchmark out."""


def stages(config: GenSegConfig) -> dict[str, tuple[float, float]]:
    """The parts of the schedule that are not empty, as fractions of the training, by name."""
    schedule, (start, _) = config.schedule, config.feedback_span
    risen, tail = schedule.warmup + schedule.ramp, 1 - schedule.tail
    start = start if config.feedback.enabled else tail
    parts = {
        "warm-up": (0.0, schedule.warmup),
        "ramp": (schedule.warmup, risen),
        "pairs": (risen, max(risen, start)),
        "pairs and feedback": (max(risen, start), tail),
        "tail": (tail, 1.0),
    }
    return {name: (begin, end) for name, (begin, end) in parts.items() if end - begin > 1e-9}


def trainer_of(kind: str, subject: Subject) -> Any:
    """A trainer at the start of its training, an epoch of which is a feedback interval."""
    if subject.device == "cuda":
        os.environ.update(nnUNet_n_proc_DA="0", nnUNet_compile="0")  # compiling takes longer than all that is measured
    trainer = build_trainer(
        KINDS[kind],
        Path(subject.folder),
        subject.number,
        subject.configuration,
        Path(subject.model),
        length=(EPOCHS, GenSegConfig().feedback.interval, 1, EPOCHS),
        device=subject.device,
    )
    without_pictures(trainer)
    trainer.on_train_start()
    trainer.logger.log = lambda *values: None  # it wants the epochs in their order
    return trainer


def clock_of(device: str) -> Callable[[], float]:
    """Tells the seconds of this process: CPU time on the CPU, else wall time with the GPU's work done."""
    if device == "cpu":
        return time.process_time
    import torch

    def waiting() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return waiting


def block(trainer: Any, epoch: int, count: int, clock: Callable[[], float], held: list[Any]) -> list[tuple[float, float]]:
    """Seconds of loading and of the training step, of the first iterations of an epoch.

    Args:
        trainer: begun.
        epoch: which one.
        count: of iterations.
        clock: measures.
        held: batches that are used in turns; if empty they are loaded.
    """
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()
    taken = []
    for i in range(count):
        start = clock()
        batch = held[i % len(held)] if held else next(trainer.dataloader_train)
        loaded = clock()
        trainer.train_step(batch)
        taken.append((loaded - start, clock() - loaded))
    return taken


def moments(config: GenSegConfig) -> dict[str, tuple[int, int]]:
    """Epoch in the middle of every stage and the iterations that are measured there."""
    return {
        name: (int((begin + end) / 2 * EPOCHS), config.feedback.interval if name == "pairs and feedback" else BLOCK)
        for name, (begin, end) in stages(config).items()
    }


def times(subject: Subject) -> dict[str, Any]:
    """Everything but the memory."""
    from operations import Counter, count_steps  # with torch, which takes its number of threads from the trainer's building

    clock = clock_of(subject.device)
    stock, genseg = (trainer_of(kind, subject) for kind in KINDS)
    held = [next(stock.dataloader_train) for _ in range(HELD)] if subject.device == "cuda" else []
    seconds: dict[str, list[list[tuple[float, float]]]] = {}
    for turn in range(subject.turns + 1):
        for name, (epoch, count) in moments(genseg.genseg).items():
            for key, trainer, length in (("stock", stock, BLOCK // 2), (name, genseg, count)):
                taken = block(trainer, epoch, min(subject.most, length if turn else 2), clock, held)
                if turn:  # the first turn is a warm-up
                    seconds.setdefault(key, []).append(taken)
    epoch, _ = moments(genseg.genseg).get("pairs and feedback", (EPOCHS // 2, 0))
    own, theirs = (count_steps(trainer, epoch, 5, Counter()) for trainer in (genseg, stock))
    return {
        "batch_size": int(stock.batch_size),
        "patch_size": [int(extent) for extent in stock.configuration_manager.patch_size],
        **summary(seconds, genseg.genseg),
        "host_syncs": max(own[1:]),
        "feedback_host_syncs": own[0],
        "stock_host_syncs": max(theirs),
    }


def summary(seconds: dict[str, list[list[tuple[float, float]]]], config: GenSegConfig) -> dict[str, Any]:
    """Ratios to stock out of the blocks, (loading, step) an iteration, of stock and of every stage."""
    whole = {name: [statistics.fmean(sum(one) for one in block) for block in blocks] for name, blocks in seconds.items()}
    steps = {name: [statistics.fmean(one[1] for one in block) for block in blocks] for name, blocks in seconds.items()}
    shares = {name: end - begin for name, (begin, end) in stages(config).items()}

    def ratio(values: dict[str, list[float]]) -> float:
        mean = sum(share * statistics.median(values[name]) for name, share in shares.items())
        return round(mean / statistics.median(values["stock"]), 3)

    own = statistics.median(whole["stock"])
    added = [
        block[0][1] - statistics.fmean([one[1] for one in block[config.generator.interval :: config.generator.interval]] or [0.0])
        for block in seconds.get("pairs and feedback", [])
    ]
    return {
        "stock_seconds": spread(whole["stock"]),
        "stock_step_seconds": spread(steps["stock"]),
        "stage_seconds": {name: spread(whole[name]) for name in shares},
        "stage_ratios": {name: round(statistics.median(whole[name]) / own, 3) for name in shares},
        "iteration_ratio": ratio(whole),
        "overhead_ratio": round(ratio(whole) - 1, 3),
        "step_ratio": ratio(steps),
        "feedback_iterations": round(statistics.median(added) / own, 2) if added else 0.0,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 5), "least": round(min(values), 5), "most": round(max(values), 5)}


def memory(kind: str, subject: Subject) -> int:
    """Bytes: the peak of this process after a few iterations of every stage, on a GPU of what torch allocated."""
    trainer = trainer_of(kind, subject)
    for epoch, _ in moments(GenSegConfig()).values():
        block(trainer, epoch, min(subject.most, 4), clock_of(subject.device), [])
    if subject.device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
