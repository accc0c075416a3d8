"""What reviewers think of written pairs, learned by a training: fewer pairs with the defect that they reject."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from nnunetv2_genseg import cli
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES
from nnunetv2_genseg.generators.smoothing import neighbourhood_mean
from nnunetv2_genseg.synthesis.pairs import Pairs
from nnunetv2_genseg.synthesis.sources import PAIR_SOURCES
from nnunetv2_genseg.synthesis.sources.deformation import DeformationSource
from nnunetv2_genseg.synthesis.spatial import per_patch
from nnunetv2_genseg.trainers import GenSegTrainerShort, preferring
from nnunetv2_genseg.trainers.preferring import PATCHES
from nnunetv2_genseg.trainers.recording import Recorder

from .conftest import DATASET_ID, make_repeatable, make_trainer, resume, weights_of
from .datasets import IGNORED, Kind, plan, use_threads
from .processes import differences
from .test_trainer import log_of, trained

LENGTH = "2,3,1,1,0"

SETTINGS = {
    "schedule": {"warmup": 0.0, "ramp": 0.0, "tail": 0.0},
    "mixing": {"share": 1.0, "sources": {"smudged": 1.0}},
    "paste": {"probability": 0.0},
    "feedback": {"enabled": False},
}
"""Every patch becomes a pair of the source `smudged`."""
PAIRS = 40
KINDS = {"photographs": (Kind(), "2d"), "volumes": (Kind(dims=3, regions=True, ignore=True), "3d_fullres")}

ONE_KIND = pytest.mark.parametrize("planned", ["photographs"], indirect=True)
"""For what does not depend on the dimensions."""


class SmudgedSource(DeformationSource):
    """Deformed pairs; in about half of them the image is blurred along the boundaries of the mask."""

    drawn: ClassVar[list[tuple[torch.Tensor, bool]]] = []
    """Every image that was drawn, and whether it has the defect."""

    def sample(self, image: torch.Tensor, labels: torch.Tensor, rng: torch.Generator) -> Pairs:
        pairs = super().sample(image, labels, rng)
        smudged = torch.rand(len(image), generator=rng) < 0.5
        blurred, near = pairs.image, (pairs.labels[:, None] % 3 > 0).float()
        for _ in range(3):
            blurred, near = neighbourhood_mean(blurred), neighbourhood_mean(near)
        defect = per_patch(smudged, image) & (near > 0.02) & (near < 0.98)
        shown = torch.where(defect, blurred, pairs.image)
        type(self).drawn += list(zip(shown, smudged.tolist(), strict=True))
        return Pairs(shown, pairs.labels, pairs.grid, pairs.accepted)


@dataclass(frozen=True)
class Place:
    """A planned dataset, pairs that `genseg generate` wrote of it, and what a reviewer decides by looking at their pixels."""

    folder: Path
    dataset: str
    configuration: str
    accepted: dict[str, bool]

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs"

    def reviewed(self, decisions: dict[str, dict[str, bool]]) -> Path:
        """Writes review.csv: by reviewer and pair, whether it is accepted."""
        path = self.pairs / "review.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["pair", "reviewer", "decision", "rating", "reasons", "time"])
            for reviewer, of_pairs in decisions.items():
                for pair, accepted in of_pairs.items():
                    row = [pair, reviewer, "accept", 5, ""] if accepted else [pair, reviewer, "reject", 1, "boundary"]
                    table.writerow([*row, "2026-01-01T10:00:00"])
        return path

    def trainer(self, length: str = LENGTH, again: bool = False, **options: Any) -> Any:
        make = resume if again else make_trainer
        return make(GenSegTrainerShort, self.dataset, self.configuration, length, **options)


@pytest.fixture(scope="module", params=KINDS)
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp(request.param)
    kind, configuration = KINDS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        in_folders(folder, patch)
        raw = kind.write(folder / "nnUNet_raw", DATASET_ID)
        plan(DATASET_ID, configuration)
        named = ("--set", "mixing.sources={smudged: 1, deformation: 0, redraw: 0}")
        cli.main(
            ["generate", str(DATASET_ID), configuration, "0", "-n", str(PAIRS), "-o", f"{folder}/pairs", "-device", "cpu", *named]
        )
    shown = {path.name.split(".")[0]: sharpness(path) for path in sorted((folder / "pairs" / "labelsTr").iterdir())}
    limit = float(np.median(list(shown.values())))
    return Place(folder, raw.name, configuration, {name: value > limit for name, value in shown.items()})


def in_folders(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """nnU-Net's folders, and the source `smudged` to be found."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        patch.setenv(name, str(folder / name))
    patch.setenv("nnUNet_n_proc_DA", "0")
    for name in (OVERRIDES, EXTERNAL_TRAINERS):
        patch.setenv(name, "")
    patch.setitem(PAIR_SOURCES._parts, "smudged", SmudgedSource)
    patch.setattr(SmudgedSource, "drawn", [])


@pytest.fixture
def place(planned: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    in_folders(planned.folder, monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    make_repeatable(monkeypatch.setattr)
    return planned


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than these trainings; `test_the_defect_that_a_reviewer_rejects_becomes_rare` draws them."""
    monkeypatch.setattr(Recorder, "refresh", lambda self, *arguments: None)


def array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def sharpness(path: Path) -> float:
    """The step of the intensities across the boundary of a written mask, as a fraction of their spread: of pixels alone."""
    image = array(next((path.parents[1] / "imagesTr").glob(f"{path.name.split('.')[0]}_0000.*"))).astype(float)
    labels = array(path)
    image = image.mean(axis=-1) if image.ndim > labels.ndim else image
    inside = (labels > 0) & (labels < IGNORED)
    steps: list[float] = []
    for axis in range(labels.ndim):
        crosses = np.diff(inside.astype(int), axis=axis) != 0
        steps += np.abs(np.diff(image, axis=axis))[crosses].tolist()
    return float(np.mean(steps) / image.std())


def defects(trainer: Any) -> tuple[float, float, int]:
    """Trains; rate of the defect among the pairs that were drawn and those that the network saw, and the number of these."""
    trainer.initialize()
    host_step, seen = trainer.host_step, []

    def watched(batch: dict[str, Any]) -> Any:
        seen.extend(batch["data"].clone())
        return host_step(batch)

    trainer.host_step = watched
    trained(trainer)
    drawn = SmudgedSource.drawn
    used = [flag for patch in seen for image, flag in drawn if torch.equal(image, patch)]
    assert len(used) <= len(seen) == 60
    return float(np.mean([flag for _, flag in drawn])), float(np.mean(used)), len(used)


def test_the_defect_that_a_reviewer_rejects_becomes_rare(place, settings):
    settings(SETTINGS | {"review": {"file": str(place.reviewed({"anna": place.accepted}))}})
    trainer = place.trainer("1,30,1,1,0")
    drawn, used, count = defects(trainer)
    assert drawn > 0.4
    assert used <= drawn / 2
    assert count > 30, "most patches are still pairs"
    log = log_of(trainer)
    assert "40 pairs judged by 1 reviewer, 20 accepted, 20 rejected; cross-validated AUC 0.9" in log
    assert "pairs like the accepted ones are preferred" in log
    assert 0.2 < trainer.recorder.progress.rows[0]["preferred"] < 0.8
    record = json.loads((Path(trainer.output_folder) / "genseg_review.json").read_text())
    assert record | {"auc": 1, "sha256": ""} == {
        "file": str(place.pairs / "review.csv"),
        "sha256": "",
        "pairs": PAIRS,
        "reviewers": ["anna"],
        "accepted": 20,
        "rejected": 20,
        "auc": 1,
        "used": True,
    }


@pytest.mark.usefixtures("without_pictures")
def test_the_same_decisions_shuffled_change_nothing(place, settings):
    names, decisions = list(place.accepted), list(place.accepted.values())
    order = np.random.default_rng(0).permutation(PAIRS)
    shuffled = {name: decisions[i] for name, i in zip(names, order, strict=True)}
    settings(SETTINGS | {"review": {"file": str(place.reviewed({"anna": shuffled}))}})
    trainer = place.trainer("1,30,1,1,0")
    drawn, used, count = defects(trainer)
    assert used > 0.8 * drawn
    assert count == 60
    assert "which decisions made at random may reach; the review is not used; review more pairs" in log_of(trainer)
    assert "preferred" not in trainer.recorder.progress.rows[0]
    assert json.loads((Path(trainer.output_folder) / "genseg_review.json").read_text())["used"] is False


@pytest.mark.usefixtures("without_pictures")
def test_a_training_resumes_to_the_bit_whatever_became_of_the_review(place, settings):
    """Two reviewers, who disagree on some pairs."""
    other = {name: accepted or k % 6 == 0 for k, (name, accepted) in enumerate(place.accepted.items())}
    path = place.reviewed({"anna": place.accepted, "bo": other})
    settings(SETTINGS | {"review": {"file": str(path)}})
    whole = trained(place.trainer())
    assert "40 pairs judged by 2 reviewers, 20 accepted, " in log_of(whole)
    assert whole.loop.sampler.preference is not None
    expected = copy.deepcopy((weights_of(whole), whole.loop.state_dict(), whole.recorder.progress.rows))
    shutil.rmtree(whole.output_folder)
    stopped = trained(place.trainer(), 1)
    path.write_text("") if place.configuration == "2d" else path.unlink()
    resumed = trained(place.trainer(again=True))
    found = weights_of(resumed), resumed.loop.state_dict(), resumed.recorder.progress.rows
    assert not list(differences(expected, found))
    assert stopped.loop.sampler.preference is not resumed.loop.sampler.preference
    logs = [log.read_text() for log in Path(resumed.output_folder).glob("training_log_*")]
    assert any(f"WARNING: {path} has changed since this training began" in log for log in logs)


@pytest.mark.usefixtures("without_pictures")
@ONE_KIND
def test_too_few_decisions_are_not_used_and_another_fold_is_refused(place, settings):
    few = dict(list(place.accepted.items())[:12])
    settings(SETTINGS | {"review": {"file": str(place.reviewed({"anna": few}))}})
    trainer = trained(place.trainer("1,1,1,1,0"))
    assert "WARNING: 12 pairs judged by 1 reviewer" in log_of(trainer)
    assert "at least 10 of each, made from 2 cases, are needed, so the review is not used" in log_of(trainer)
    assert trainer.loop.sampler.preference is None
    settings(SETTINGS)
    trained(place.trainer("1,1,1,1,0"))
    assert not (Path(trainer.output_folder) / "genseg_review.json").exists(), "of the training before"
    settings(SETTINGS | {"review": {"file": str(place.pairs / "review.csv")}})
    with pytest.raises(GenSegError, match="were made from fold 0, not from 1"):
        place.trainer("1,1,1,1,0", fold=1).run_training()


@pytest.mark.usefixtures("without_pictures")
@ONE_KIND
def test_processes_learn_from_what_they_have_in_common(place, settings, monkeypatch):
    monkeypatch.setattr(preferring, "CASES", 2)  # of the fold's four
    settings(SETTINGS | {"review": {"file": str(place.reviewed({"anna": place.accepted}))}})
    trainer, asked = place.trainer("1,1,1,1,0"), []
    trainer.initialize()

    def synchronise(tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            asked.append(tuple(tensor.shape[:-1]))
            tensor.zero_()

    trainer.loop.synchronise = synchronise
    trained(trainer)
    assert {(2 * PATCHES,), (PAIRS, PATCHES)} <= set(asked)
    assert trainer.loop.sampler.preference is None, "all pairs are alike after that"
