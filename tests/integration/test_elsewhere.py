"""Trainings that begin or go on under other conditions than usual: another folder, another number of processes, given weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_genseg.trainers import GenSegTrainerShort

from .conftest import TINY, StoppedError, make_trainer, resume, stop_after
from .datasets import IGNORED, Kind, _read, _write, plan
from .processes import Moment, Training, differences
from .test_distributed import PHANTOM_2D, everything_learned, in_processes, on_cpu
from .trainings import LENGTH, STAGES

FAMILIES: dict[str, dict[str, Any]] = {
    "gan": {},
    "vae": {"generator": {"name": "vae"}},
    "diffusion": {"generator": {"name": "diffusion"}, "feedback": {"parameters": "weights"}},
    "gmm": {"generator": {"name": "gmm"}, "feedback": {"parameters": "policy"}, "redraw": {"mode": "tissue"}},
}


def test_a_training_whose_results_were_moved_goes_on_to_the_same_bits(workspace, tmp_path, undisturbed):
    training = Training(workspace, tmp_path / "here")
    assert training.run(Moment("train_step", 10)).killed
    shutil.move(training.results, tmp_path / "there")
    moved = Training(workspace, tmp_path / "there")
    outcome = moved.run(resume=True)
    assert outcome.epochs == [4, 5], outcome.trace
    assert list(differences(undisturbed, moved.final_state())) == []


def part(rank: int, folder: Path, begin: int, end: int) -> None:
    """Epochs of a training of two processes."""
    trainer = on_cpu(*PHANTOM_2D, LENGTH, resume=begin > 0)
    trainer.initialize()
    if begin:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    goes_on(trainer, begin, end)
    torch.save(everything_learned(trainer), folder / f"rank{rank}.pt")


def goes_on(trainer: Any, begin: int, end: int) -> None:
    assert trainer.current_epoch == begin
    stop_after(trainer, end)
    if end < trainer.num_epochs:
        with pytest.raises(StoppedError):
            trainer.run_training()
    else:
        trainer.run_training()
    values = [value for row in trainer.recorder.progress.rows for value in row.values()]
    assert len(trainer.recorder.progress.rows) == end
    assert np.isfinite(values).all()


def test_a_training_goes_on_with_another_number_of_processes(nnunet, settings):
    settings(STAGES)
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH)
    goes_on(trainer, 0, 2)
    first, second = in_processes(part, nnunet, 2, 4)
    assert not list(differences(first, second))
    goes_on(resume(GenSegTrainerShort, *PHANTOM_2D, LENGTH), 4, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_from_given_weights_of_the_segmentation_network(nnunet, settings, family):
    """nnU-Net's `-pretrained_weights`."""
    settings({"feedback": {"enabled": False}, "mixing": {"sources": {"deformation": 1.0}}})
    source = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY)
    source.run_training()
    path = Path(source.output_folder) / "checkpoint_final.pth"
    settings({name: STAGES.get(name, {}) | FAMILIES[family].get(name, {}) for name in STAGES | FAMILIES[family]})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH, fold=1, plans_name=TINY)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(path))
    given = torch.load(path, weights_only=False)["network_weights"]
    loaded = trainer.network.state_dict()
    assert sum(torch.equal(loaded[name], value) for name, value in given.items()) > len(given) / 2
    trainer.run_training()
    assert len(trainer.recorder.progress.rows) == 5


@pytest.mark.parametrize("regions", [False, True])
def test_cases_that_are_not_annotated_at_all_train_with_the_others(folder, settings, regions):
    settings(STAGES | {"feedback": STAGES["feedback"] | {"cases": ["tr_000"]}})
    raw = Kind(ignore=True, regions=regions).write(folder / "nnUNet_raw", 910)
    for name in ("tr_000", "tr_001"):
        path = raw / "labelsTr" / f"{name}.png"
        labels, spacing = _read(path)
        _write(np.full_like(labels, IGNORED), spacing, path)
    plan(910, "2d")
    split = {"train": ["tr_000", "tr_001", "tr_002", "tr_003"], "val": ["tr_004"]}
    (folder / "nnUNet_preprocessed" / raw.name / "splits_final.json").write_text(json.dumps([split]))
    trainer = make_trainer(GenSegTrainerShort, raw.name, "2d", LENGTH)
    trainer.run_training()
    rows = trainer.recorder.progress.rows
    assert len(rows) == 5
    assert all(np.isfinite(value) for row in rows for value in row.values())
