"""Processes that load data do not hold more and more memory, and nothing is left of them: no process, descriptor or memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import suppress
from pathlib import Path

from nnunetv2_genseg.trainers import GenSegTrainerShort

from .conftest import TINY, make_trainer
from .memory import EVERY, PATCH_BATCH
from .processes import Moment, Training, memory_slope
from .trainings import STAGES

LOADERS, WARM_UP = 2, 150
NO_GENERATOR = {"feedback": {"enabled": False}, "mixing": {"sources": {"deformation": 1.0}}}
"""A training that does little but load."""


def test_memory_does_not_grow_with_the_iterations(workspace, tmp_path):
    """Of the training and of its loading processes together; the bound is a leak of one batch of patches an iteration."""
    options = {"settings": NO_GENERATOR, "workers": LOADERS, "memory_every": EVERY}
    outcome = Training(workspace, tmp_path, length="4,100,1,9,0", **options).run()
    assert outcome.exit_status == 0, outcome.trace
    assert memory_slope(outcome.memory, WARM_UP) < PATCH_BATCH


def runs(pid: int) -> bool:
    """Whether there is a process of that number that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    except FileNotFoundError:
        return False


def test_they_end_with_a_training_that_is_killed(workspace, tmp_path):
    outcome = Training(workspace, tmp_path, settings=NO_GENERATOR, workers=LOADERS).run(Moment("train_step", 3))
    assert outcome.killed
    assert len(outcome.loading) == LOADERS + 1
    deadline = time.monotonic() + 60
    while any(map(runs, outcome.loading)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, outcome.loading))


class Watched(GenSegTrainerShort):
    """Notes at the end of each epoch which processes load."""

    def initialize(self) -> None:
        super().initialize()
        self.loading: list[set[int]] = []

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self.loading.append({process.pid or 0 for process in multiprocessing.active_children()})


def to_other_processes() -> list[str]:
    """Open pipes, sockets and shared memory."""
    targets = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(target for target in targets if target.startswith(("pipe:", "socket:", "/dev/shm")))


def test_nothing_is_left_of_loaders_that_other_held_out_cases_replace(nnunet, settings, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", str(LOADERS))
    settings(STAGES)
    trainer = make_trainer(Watched, "Dataset901_Phantom2D", "2d", "5,2,1,9,0", plans_name=TINY)
    others = multiprocessing.active_children()
    before = to_other_processes()
    trainer.run_training()
    of_training = LOADERS + max(1, LOADERS // 2)
    assert [len(loading) for loading in trainer.loading] == [of_training] * 5
    assert len(set.union(*trainer.loading)) >= 3 * of_training, "loaders were replaced"
    del trainer.dataloader_train, trainer.dataloader_val
    assert multiprocessing.active_children() == others
    assert to_other_processes() == before
    ended = [path.name for path in Path("/dev/shm").iterdir() if path.name.startswith("torch_")]
    assert not [name for name in ended if int(name.split("_")[1]) in set.union(*trainer.loading)]
