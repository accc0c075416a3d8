"""Disks that are full or read-only, processes that die, files that are damaged: a clear error, and `--c` goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nnunetv2_genseg import checkpoint
from nnunetv2_genseg.checkpoint import FORMAT
from nnunetv2_genseg.files.lock import alone_in
from nnunetv2_genseg.trainers.recording import PROGRESS_FILE, SAMPLES_FILE

from .conftest import TINY, Workspace
from .kills import SIBLING
from .processes import Moment, Training, differences


@pytest.fixture(scope="module")
def killed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training that was killed in its fifth epoch, after the checkpoint of the fourth."""
    training = Training(workspace, tmp_path_factory.mktemp("killed"))
    assert training.run(Moment("train_step", 10)).killed
    return training


@pytest.fixture
def copy(killed: Training, tmp_path: Path) -> Training:
    """The same in a folder of the test's own."""
    shutil.copytree(killed.results, tmp_path / "results")
    return Training(killed.workspace, tmp_path / "results")


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("checkpoint_*") if path.is_file()}


@pytest.mark.parametrize("file", ["checkpoint_latest.pth", SIBLING.format("latest")])
def test_a_disk_that_is_full_leaves_the_older_checkpoint_and_the_training_goes_on(workspace, tmp_path, undisturbed, file):
    training = Training(workspace, tmp_path)
    outcome = training.run(Moment(f"open {file}.[0-9]*.partial", 2, "disk full", 50_000))
    assert outcome.exit_status == 2
    assert outcome.error.startswith(f"GenSegFileError: could not write {training.folder / file.replace('*', '0004')}: [Errno 27]")
    assert "free space" in outcome.error
    assert list(training.folder.glob("*.partial")) == []
    older = training.folder / "checkpoint_latest.pth"
    checkpoint.require_intact(older)
    assert torch.load(older, weights_only=False)["current_epoch"] == 2
    assert checkpoint.sibling(older, 2).is_file()
    again = training.run(resume=True)
    assert again.epochs == [2, 3, 4, 5], again.trace
    assert list(differences(undisturbed, training.final_state())) == []


@pytest.mark.parametrize("room", [0, 15_000])
def test_a_disk_that_is_full_for_all_but_checkpoints_does_not_end_a_training(workspace, tmp_path, room):
    """No room for anything, the log included, or for the log alone."""
    training = Training(workspace, tmp_path, checkpoints=False)
    outcome = training.run(Moment("train_step", 5, "disk full", room))
    assert outcome.exit_status == 0, outcome.trace
    assert outcome.epochs == list(range(6))
    assert list(training.folder.glob("*.partial")) == []
    log = next(training.folder.glob("training_log*.txt")).read_text()
    for name in (PROGRESS_FILE, SAMPLES_FILE):
        with Image.open(training.folder / name) as picture:  # that of the first epoch
            picture.load()
        assert log.count(f"GenSeg: {name} cannot be made (GenSegFileError: could not write") == (room > 0)


def test_a_disk_that_is_full_at_the_start_is_one_message(workspace, tmp_path):
    outcome = Training(workspace, tmp_path).run(Moment("open plans.json", 1, "disk full", 100))
    assert outcome.exit_status == 2
    assert outcome.error.startswith(
        "GenSegFileError: a file could not be written, most likely because a disk is full: [Errno 27]"
    )


def test_a_read_only_folder_is_named_and_once_writable_the_training_goes_on(copy, undisturbed):
    before = content_of(copy.folder)
    copy.folder.chmod(0o555)
    try:
        outcome = Training(copy.workspace, copy.results, unprivileged=True).run(resume=True)
    finally:
        copy.folder.chmod(0o755)
    assert outcome.exit_status == 2
    assert outcome.error == (f"GenSegFileError: {copy.folder} is not writable; correct the permissions of the results folder")
    assert content_of(copy.folder) == before
    again = copy.run(resume=True)
    assert again.epochs == [4, 5], again.trace
    assert list(differences(undisturbed, copy.final_state())) == []


def test_a_fold_folder_in_which_another_process_trains_is_refused_and_left_alone(copy):
    before = content_of(copy.folder)
    unfinished = copy.folder / "checkpoint_latest.pth.1.partial"
    with alone_in(copy.folder):
        unfinished.write_bytes(b"half of what the other one writes")
        for resume in (False, True):
            outcome = copy.run(resume=resume)
            assert outcome.exit_status == 2
            assert outcome.error.startswith(f"GenSegError: {copy.folder} is in use by process {os.getpid()} on ")
            assert outcome.epochs == []
    assert content_of(copy.folder) == before | {unfinished.name: unfinished.read_bytes()}


def test_a_folder_that_becomes_read_only_is_named_when_saving(workspace, tmp_path, undisturbed):
    training = Training(workspace, tmp_path, unprivileged=True)
    outcome = training.run(Moment("open checkpoint_latest.genseg-*.pt.[0-9]*.partial", 2, "read-only folder"))
    training.folder.chmod(0o755)
    assert outcome.exit_status == 2
    assert "could not write" in outcome.error
    assert "Permission denied" in outcome.error
    again = training.run(resume=True)
    assert again.epochs == [2, 3, 4, 5], again.trace
    assert list(differences(undisturbed, training.final_state())) == []


def test_a_killed_data_loading_process_ends_the_training_which_goes_on_later(workspace, tmp_path):
    training = Training(workspace, tmp_path, workers=1)
    outcome = training.run(Moment("train_step", 6, "kill worker"))
    assert outcome.exit_status == 2
    assert "background workers are no longer alive" in outcome.error
    again = training.run(resume=True)
    assert again.exit_status == 0, again.trace
    assert again.epochs == list(range(2, 6))


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def edited(**changes: Any) -> Callable[[Path], None]:
    """Puts other values into the file."""

    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        identity = {key: value for key, value in changes.items() if key in content["identity"]}
        content["identity"] |= identity
        torch.save(content | {key: value for key, value in changes.items() if key not in identity}, path)

    return damage


def reshaped(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Gives the state another form."""

    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content["state"])
        torch.save(content, path)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is corrupt"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "is corrupt"),
    "its first bytes flipped": (
        lambda path: path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()[:2000]) + path.read_bytes()[2000:]),
        "is corrupt",
    ),
    "missing": (Path.unlink, "is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
    "of another dataset": (edited(dataset="Dataset999_Other"), "dataset is 'Dataset999_Other' there"),
    "of other plans": (edited(plans="nnUNetPlans"), "plans is 'nnUNetPlans' there"),
    "of another configuration": (edited(configuration="3d_fullres"), "configuration is '3d_fullres' there, '2d' here"),
    "of another fold": (edited(fold="1"), "fold is '1' there, '0' here"),
    "of other settings": (edited(settings={"generator": {"name": "gmm"}}), "settings is {'generator': {'name': 'gmm'}} there"),
    "of another number of classes": (edited(classes=7), "classes is 7 there, 3 here"),
    "of another epoch": (edited(epoch=3), "epoch is 3 there, 4 here"),
    "of an older format": (edited(format=FORMAT - 1), f"has format {FORMAT - 1}, this version reads {FORMAT}"),
    "of a newer format": (edited(format=FORMAT + 1), f"has format {FORMAT + 1}, this version reads {FORMAT}"),
    "of other cases": (edited(**{"training cases": ["tr_000"]}), "training cases differ, tr_"),
    "of another patch size": (edited(**{"`patch_size` of the plans": [8, 8]}), "`patch_size` of the plans is [8, 8] there"),
    "without a part": (reshaped(lambda state: state["loop"]["learned"].pop("sampler")), "does not fit (ValueError: .learned has"),
    "with a bound of another shape": (
        reshaped(lambda state: state["loop"]["learned"]["sampler"]["deformer"].update(largest=torch.zeros(1))),
        "does not fit (ValueError: .learned.sampler.deformer.largest has another form)",
    ),
    "with epochs that are no numbers": (reshaped(lambda state: state["progress"].update(rows=[{"epoch": "a"}])), "does not fit"),
    "without random states": (reshaped(lambda state: state.pop("random")), "does not fit (KeyError: 'random')"),
    "code": (lambda path: torch.save(Malicious(f"touch {path.parent / 'executed'}"), path), "is corrupt"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_generator_file_that_does_not_fit_is_refused_and_nothing_is_changed(copy, name):
    damage, message = DAMAGES[name]
    path = checkpoint.sibling(copy.folder / "checkpoint_latest.pth", 4)
    damage(path)
    before = content_of(copy.folder)
    outcome = copy.run(resume=True)
    assert outcome.exit_status == 2
    assert outcome.error.startswith("GenSegError: ")
    assert message in outcome.error
    assert str(path) in outcome.error
    assert "train anew, without --c" in outcome.error
    assert outcome.epochs == []
    assert content_of(copy.folder) == before
    assert not (copy.folder / "executed").exists()


@pytest.fixture
def preprocessed(workspace: Workspace, tmp_path: Path) -> Workspace:
    """Preprocessed data of the test's own."""
    shutil.copytree(workspace.folder / "nnUNet_preprocessed", tmp_path / "own" / "nnUNet_preprocessed")
    return Workspace(tmp_path / "own")


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_splits_or_plans_that_were_edited_before_it_goes_on_are_refused(copy, preprocessed):
    """Else cases that were trained on would become validation cases."""
    folder, again = preprocessed.preprocessed(copy.dataset), Training(preprocessed, copy.results)
    recorded = (copy.folder / "genseg_split.json").read_text()
    edit(folder / "splits_final.json", lambda splits: splits[1:] + splits[:1])
    outcome = again.run(resume=True)
    assert outcome.exit_status == 2
    assert "belongs to another training: training cases differ, tr_" in outcome.error
    assert "only there" in outcome.error
    edit(folder / "splits_final.json", lambda splits: splits[-1:] + splits[:-1])

    def larger_batch(plans: Any) -> Any:
        plans["configurations"]["2d"]["batch_size"] += 1
        return plans

    edit(folder / f"{TINY}.json", larger_batch)
    outcome = again.run(resume=True)
    assert outcome.exit_status == 2
    assert "another training: `batch_size` of the plans is " in outcome.error
    assert (copy.folder / "genseg_split.json").read_text() == recorded


def test_preprocessed_data_may_be_read_only_and_name_a_case_twice(preprocessed, tmp_path):
    folder = preprocessed.preprocessed("Dataset901_Phantom2D")
    training = [*(f"tr_{i:03d}" for i in range(6)), "tr_000", "tr_001", "tr_002"]
    (folder / "splits_final.json").write_text(json.dumps([{"train": training, "val": ["tr_006", "tr_006"]}]))
    paths = [folder, *folder.rglob("*")]
    try:
        for path in paths:
            path.chmod(0o555)
        made = Training(preprocessed, tmp_path, length="2,1,1,9,0", unprivileged=True)
        outcome = made.run()
    finally:
        for path in paths:
            path.chmod(0o755)
    assert outcome.exit_status == 0, outcome.trace
    parts = json.loads((made.folder / "genseg_split.json").read_text())
    assert sorted(parts["training"] + parts["held_out"]) == sorted(set(training))


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped"])
def test_a_damaged_checkpoint_of_nnunet_is_refused_by_name(copy, damage):
    path = copy.folder / "checkpoint_latest.pth"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        weights = torch.load(path, weights_only=False)["network_weights"]["decoder.seg_layers.0.weight"].numpy().tobytes()
        content[content.index(weights)] ^= 0x10
    path.write_bytes(content[: {"empty": 0, "truncated": len(content) // 2}.get(damage)])
    outcome = copy.run(resume=True)
    assert outcome.exit_status == 2
    assert outcome.error.startswith(f"GenSegError: {path} is corrupt")
    assert outcome.epochs == []


def test_a_flipped_bit_anywhere_in_a_real_generator_file_gives_the_same_state_or_an_error(copy):
    """Over 400 positions; padding and the archive's time stamps may stay unnoticed."""
    latest = copy.folder / "checkpoint_latest.pth"
    path = checkpoint.sibling(latest, 4)
    content = path.read_bytes()
    whole = torch.load(path, weights_only=True)
    rng, refused = np.random.default_rng(0), 0
    for position in rng.choice(len(content), 400, replace=False):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found = checkpoint.load_sibling(whole["identity"], latest, 4)
        except ValueError as error:
            assert "corrupt" in str(error), position
            refused += 1
        else:
            assert list(differences(whole["state"], found)) == [], position
    assert refused > 200
