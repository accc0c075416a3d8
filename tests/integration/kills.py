"""Moments at which a training is killed, and what is left of it when it goes on."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from .processes import Moment, Outcome, Training, differences

SAVE_EVERY = 2
SEED = 2025
SIBLING = "checkpoint_{}.genseg-*.pt"
STEPS = {
    "on_epoch_start": 6,
    "train_step": 12,
    "train_step done": 12,
    "sample": 11,
    "training_step": 6,
    "training_step done": 6,
    "feedback_step": 7,
    "feedback_step done": 7,
    "validation_step": 6,
    "preview": 2,
}
"""What happens at least so often in a training of six epochs of two iterations."""


def _in_steps(rng: random.Random, count: int) -> list[Moment]:
    return [Moment(event, rng.randint(1, STEPS[event])) for event in rng.sample(list(STEPS), count)]


def _in_a_write(rng: random.Random, file: str, count: int) -> Moment:
    return Moment(f"open {file}.[0-9]*.partial", rng.randint(1, count), "kill in write", rng.randint(1, 60_000))


def _moments() -> list[tuple[Moment, ...]]:
    """One moment a process: after each the training is continued until the next, and after the last to its end."""
    rng = random.Random(SEED)
    latest, best, final = ("checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth")
    writes = [
        _in_a_write(rng, latest, 2),
        _in_a_write(rng, SIBLING.format("latest"), 2),
        _in_a_write(rng, best, 2),
        _in_a_write(rng, SIBLING.format("best"), 2),
        _in_a_write(rng, final, 1),
        _in_a_write(rng, SIBLING.format("final"), 1),
        Moment(f"fsync {latest}.[0-9]*.partial", 2),
        Moment(f"fsync {SIBLING.format('latest')}.[0-9]*.partial", rng.randint(1, 2)),
        Moment(f"rename {latest}.[0-9]*.partial", 2),  # the older checkpoint must still have its state
        Moment(f"rename {SIBLING.format('latest')}.[0-9]*.partial", rng.randint(1, 2)),
        Moment(f"rename {best}.[0-9]*.partial", rng.randint(1, 2)),
        Moment(f"rename {final}.[0-9]*.partial"),
        Moment(f"remove {SIBLING.format('latest')}"),  # the next checkpoint is in place, the older state still there
        Moment(f"remove {latest}"),  # trained to the end, not yet tidied up
    ]
    resuming = (Moment("train_step", 7), Moment("open genseg_config.json.[0-9]*.partial", 1, "kill in write", 100))
    again_and_again = (Moment("training_step", 3), Moment(f"rename {latest}.[0-9]*.partial"), Moment("validation_step"))
    outside = [replace(moment, fault="kill from outside", seconds=rng.uniform(0.0, 0.3)) for moment in _in_steps(rng, 5)]
    return [*((moment,) for moment in [*_in_steps(rng, 7), *writes, *outside]), resuming, again_and_again]


MOMENTS = _moments()


@dataclass(frozen=True)
class Continued:
    """What became of a training that was killed."""

    moments: tuple[Moment, ...]
    runs: list[Outcome]
    """One a process; the last went on to the end."""
    repeated: int
    """Epochs that were begun more than once, counted as often."""
    changed: list[str]
    """What differs from the training that was not killed."""
    left_over: list[str]
    """Unfinished files in the fold folder at the end."""

    @property
    def killed(self) -> bool:
        """Whether every process but the last was."""
        return all(run.killed for run in self.runs[:-1]) and not self.runs[-1].killed


def killed_and_continued(training: Training, moments: tuple[Moment, ...], expected: dict[str, Any]) -> Continued:
    """Trains, is killed at every moment in turn and continued with nnU-Net's `--c`, and is compared with `expected`."""
    runs = [training.run(moment, resume=i > 0) for i, moment in enumerate(moments)]
    runs.append(training.run(resume=True))
    begun = [epoch for run in runs for epoch in run.epochs]
    return Continued(
        moments,
        runs,
        len(begun) - len(set(begun)),
        list(differences(expected, training.final_state())) if not runs[-1].error else [runs[-1].trace],
        sorted(path.name for path in training.folder.glob("*.partial")),
    )
