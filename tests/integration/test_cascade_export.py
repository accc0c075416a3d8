"""Killed while it writes a cascade's segmentations for the next stage, a training leaves none that is half-written."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.files.lock import alone_in
from nnunetv2_genseg.trainers import GenSegTrainerShort
from nnunetv2_genseg.trainers.exporting import NEXT_STAGE, SUMMARY

from .conftest import DATASET_ID, make_trainer
from .datasets import Kind, plan
from .test_coverage import add_cascade
from .trainings import STAGES

STAGE, SHORT = "3d_cascade_fullres", "1,1,1,1,0"


def killed_in_write() -> None:
    """The kernel kills the process in the middle of the next file that it writes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


KILLS: dict[str, tuple[Callable[[], None], int]] = {
    "SIGKILL": (killed_in_write, -signal.SIGXFSZ),
    "SIGTERM": (lambda: os.kill(os.getpid(), signal.SIGTERM), 128 + signal.SIGTERM),
}
"""How the process is ended, and its exit status."""


@pytest.fixture
def first_stage(folder: Path, settings: Callable[[dict[str, Any]], None]) -> Any:
    """A trainer of 3d_lowres at the end of its training."""
    settings(STAGES | {"feedback": {"enabled": False}, "mixing": {"sources": {"deformation": 1.0}}})
    raw = Kind(dims=3).write(folder / "nnUNet_raw", DATASET_ID)
    plans = plan(DATASET_ID, "3d_lowres", edit=add_cascade)
    plan_and_preprocess_api.preprocess([DATASET_ID], plans, ["3d_fullres"], [1])
    trainer = make_trainer(GenSegTrainerShort, raw.name, "3d_lowres", SHORT, "all")
    trainer.run_training()
    return trainer


def validate_until(trainer: Any, fault: Callable[[], None]) -> None:
    """In a process of its own: the final validation, with a fault where the third segmentation for the next stage is written."""
    write, seen = nnUNetDatasetBlosc2.save_seg, []

    def save_seg(*arguments: Any, **options: Any) -> None:
        seen.append(arguments)
        if len(seen) == 3:
            fault()
        write(*arguments, **options)

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it: writing fails instead
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a test before in this process may have started Ray, which leaves a handler
    nnUNetDatasetBlosc2.save_seg = staticmethod(save_seg)
    trainer.perform_actual_validation()


def start_second_stage(first: Any) -> None:
    dataset = first.plans_manager.dataset_name
    make_trainer(GenSegTrainerShort, dataset, STAGE, SHORT, "all").run_training()


def test_what_a_killed_export_leaves_is_not_taken_as_complete(first_stage):
    folder, base = Path(first_stage.output_folder), Path(first_stage.output_folder_base)
    exported = base / NEXT_STAGE / STAGE
    for fault, status in KILLS.values():
        process = multiprocessing.get_context("fork").Process(target=validate_until, args=(first_stage, fault))
        process.start()
        process.join()
        assert process.exitcode == status
        assert not exported.exists()
        assert not (folder / SUMMARY).exists()
    assert "ended by a signal" in Path(first_stage.log_file).read_text()
    with pytest.raises(GenSegError, match=r"segmentations, is missing; first train configuration 3d_lowres .*--val"):
        start_second_stage(first_stage)
    with alone_in(folder), pytest.raises(GenSegError, match="in use by"):
        first_stage.perform_actual_validation()
    first_stage.perform_actual_validation()
    assert sorted(path.stem for path in exported.iterdir()) == [f"tr_{i:03d}" for i in range(5)]
    assert (folder / SUMMARY).is_file()
    assert not [*base.rglob("*.partial")]
    start_second_stage(first_stage)
    one = exported / "tr_001.b2nd"
    one.write_bytes(one.read_bytes()[:100])
    with pytest.raises(GenSegError, match=r"previous stage's segmentation of case tr_001 .* cannot be read"):
        start_second_stage(first_stage)
