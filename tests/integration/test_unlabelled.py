"""Pairs made from unlabelled images, in nnU-Net's own training loop."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from PIL import Image

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.pseudo_labels import PseudoLabels
from nnunetv2_genseg.trainers import GenSegMixin, GenSegTrainerShort, processes, teacher_quality
from nnunetv2_genseg.trainers.memory_check import try_largest_steps
from nnunetv2_genseg.trainers.short import ShortTraining
from nnunetv2_genseg.trainers.teacher import Teacher
from nnunetv2_genseg.trainers.unlabelled import STAMPS, preprocess_beside

from .conftest import DATASET_ID, TINY, make_trainer, resume
from .datasets import Kind, plan
from .processes import differences
from .test_coverage import add_cascade
from .test_distributed import everything_learned, in_processes, on_cpu
from .test_trainer import log_of, trained
from .trainings import STAGES, checkpoint_of, predict

LENGTH = "5,3,1,1,0"
STOP = 3
PHANTOM_2D = ("Dataset901_Phantom2D", "2d")


def unlabelled(*folders: Path, **settings: Any) -> dict[str, Any]:
    """All stages, and every pair from an unlabelled image as soon as may be."""
    section = {"images": [str(folder) for folder in folders], "share": 1.0, "confidence": 0.6} | settings
    return STAGES | {"unlabelled": section}


def trust_every_teacher(replace: Callable[[Any, str, Any], None]) -> None:
    replace(teacher_quality, "POOR", -1.0)
    replace(teacher_quality, "GOOD", 0.0)


class AsIfTrained:
    """Stands for a network that has trained for thousands of iterations: its output is the mask of the last real patch.

    It is not sure in the first column. Everything else of the training is real.
    """

    codec: LabelCodec
    labels: torch.Tensor

    @classmethod
    def patch(cls, replace: Callable[[Any, str, Any], None]) -> None:
        observe = PseudoLabels.observe

        def watched(self: PseudoLabels, labels: torch.Tensor) -> None:
            observe(self, labels)
            cls.codec, cls.labels = self.codec, torch.where(self.codec.is_foreground(labels), labels, 0)[:1]

        replace(PseudoLabels, "observe", watched)
        replace(Teacher, "__call__", cls.logits)
        trust_every_teacher(replace)  # it does not see mirror images

    @classmethod
    def logits(cls, network_input: torch.Tensor) -> torch.Tensor:
        if cls.codec.regions is None:
            shown = torch.nn.functional.one_hot(cls.labels, cls.codec.foreground + 1).movedim(-1, 1)
        else:
            shown = cls.codec.to_target(cls.labels, torch.long)[:, :-1]
        logits = 20.0 * shown - 10
        logits[..., :1] *= 0.01
        return logits.expand(len(network_input), *logits.shape[1:])


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of these tests are too young to be sure of anything."""
    AsIfTrained.patch(monkeypatch.setattr)


@pytest.fixture
def preprocessed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the unlabelled cases that are preprocessed, as they are."""
    names: list[str] = []
    run = DefaultPreprocessor.run_case_save

    def watched(self: Any, target: str, *arguments: Any) -> Any:
        result = run(self, target, *arguments)
        names.append(Path(target).name.rsplit("_", 1)[0])
        return result

    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", watched)
    return names


@pytest.fixture
def images(nnunet: Path) -> Path:
    """A folder with four unlabelled images of the 2D phantom."""
    folder = nnunet / "more"
    folder.mkdir()
    for i, path in enumerate(sorted((Path(os.environ["nnUNet_raw"]) / PHANTOM_2D[0]).glob("imagesT[rs]/*_0000.png"))[-4:]):
        shutil.copy(path, folder / f"other_{i}_0000.png")
    return folder


@pytest.fixture(autouse=True)
def no_cache_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The planned phantom is shared by all tests; what is preprocessed beside it is this test's own."""
    yield
    if "workspace" in request.fixturenames:
        for folder in request.getfixturevalue("workspace").folder.glob("nnUNet_preprocessed/*/*_unlabelled"):
            shutil.rmtree(folder)


def watch_targets(trainer: nnUNetTrainer, ignore: int) -> list[tuple[int, bool, bool]]:
    """At every step: patches of the batch, whether it holds the ignore label, and whether the trainer's own loss judges it."""
    seen: list[tuple[int, bool, bool]] = []
    host_step = trainer.host_step

    def watched(batch: dict[str, Any]) -> Any:
        target = batch["target"][0]
        regions = trainer.label_manager.has_regions
        ignored = bool(target[:, -1].any()) if regions and target.shape[1] == ignore else bool((target == ignore).any())
        seen.append((len(batch["data"]), ignored, trainer.loss is trainer._own_loss))
        return host_step(batch)

    trainer.host_step = watched
    return seen


KINDS = {
    "labels": (Kind(), "2d"),
    "regions": (Kind(regions=True), "2d"),
    "ignore label": (Kind(ignore=True), "2d"),
    "regions and ignore label": (Kind(dims=3, regions=True, ignore=True), "3d_fullres"),
    "two channels, anisotropic": (Kind(dims=3, channels=("CT", "T2"), every=3), "3d_fullres"),
}


@pytest.mark.parametrize(("kind", "configuration"), KINDS.values(), ids=list(KINDS))
def test_every_kind_of_dataset_trains_resumes_to_the_bit_and_predicts(folder, settings, sure, kind, configuration):
    raw = kind.write(folder / "nnUNet_raw", DATASET_ID)
    settings(unlabelled(raw / "imagesTs"))
    plans = plan(DATASET_ID, configuration)
    arguments = (GenSegTrainerShort, raw.name, configuration, LENGTH)
    stopped = trained(make_trainer(*arguments, plans_name=plans), STOP)
    assert "pairs are also made from 1 unlabelled image " in log_of(stopped)
    resumed = resume(*arguments, plans_name=plans)
    resumed._own_loss = resumed.loss
    steps = watch_targets(resumed, 3)
    trained(resumed)
    assert [count for count, _, _ in steps] == [2] * 6
    assert any(ignored for _, ignored, _ in steps[:3])
    assert kind.ignore or not any(own for _, ignored, own in steps if ignored), "judged by a loss that ignores"
    assert all(own for _, _, own in steps[3:]), "the tail holds no pairs"
    rows = resumed.recorder.progress.rows
    assert ["pseudo_labels_used" in row for row in rows] == [False, True, True, True, False]
    assert rows[3]["pseudo_labels_used"] > 0
    assert 0.9 < rows[3]["pseudo_labels_sure"] < 1, "all but a column"
    assert all("teacher_agreement" in row for row in rows[:4])
    predict(resumed, folder / "predictions")
    state = learned_by(resumed)
    assert resumed._pseudo.teacher.average.n_averaged == 12, "iterations before the tail"

    os.rename(resumed.output_folder, folder / "first")
    whole = trained(make_trainer(*arguments, plans_name=plans))
    assert not list(differences(state, learned_by(whole)))


def learned_by(trainer: nnUNetTrainer) -> Any:
    """Segmentation network, generator, teacher and the bounds of pseudo-labels."""
    return copy.deepcopy((checkpoint_of(trainer)["network_weights"], everything_learned(trainer), trainer._pseudo.state_dict()))


def test_images_are_preprocessed_once_and_again_where_they_changed(images, settings, sure, preprocessed, workspace):
    settings(unlabelled(images))
    names = [f"other_{i}" for i in range(4)]
    trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY))
    assert sorted(preprocessed) == names
    preprocessed.clear()
    trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY, fold=1))
    assert preprocessed == [], "another fold"
    base = workspace.preprocessed(PHANTOM_2D[0])
    plans = json.loads((base / f"{TINY}.json").read_text())
    plans["configurations"]["2d"] |= {"batch_size": 3}
    (base / "Other.json").write_text(json.dumps(plans | {"plans_name": "Other"}))
    trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name="Other"))
    assert preprocessed == [], "other plans that preprocess alike"
    path = images / "other_2_0000.png"
    with Image.open(path) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    (images / "other_3_0000.png").unlink()
    trainer = trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY, fold=2))
    assert preprocessed == ["other_2"]
    record = json.loads((Path(trainer.output_folder) / "genseg_unlabelled.json").read_text())
    agreement = trainer.recorder.progress.rows[0]["teacher_agreement"]
    assert record == {"images": {str(images): names[:3]}, "transductive": [], "share": 1.0, "teacher_agreement": agreement}
    assert "transductive" not in log_of(trainer)


def test_several_processes_preprocess_as_one_does(images, settings, monkeypatch, workspace):
    cache = workspace.preprocessed(PHANTOM_2D[0]) / "nnUNetPlans_2d_unlabelled"
    settings(unlabelled(images))
    found = []
    for count in (1, 2):
        monkeypatch.setattr(processes, "default_num_processes", count)
        trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY)
        folder, _ = preprocess_beside(trainer, [images])
        assert folder == cache
        data = infer_dataset_class(str(cache))(str(cache))
        found.append({name: data.load_case(name)[0][:] for name in data.identifiers})
        assert not (cache / STAMPS / "new").exists()
        shutil.rmtree(cache)
    one, several = found
    assert len(one) == 4
    assert all(np.array_equal(one[name], several[name]) for name in one.keys() | several.keys())


def test_other_trainings_find_a_case_while_it_is_preprocessed_again(images, settings, monkeypatch, workspace):
    settings(unlabelled(images))
    trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY))
    cache = workspace.preprocessed(PHANTOM_2D[0]) / "nnUNetPlans_2d_unlabelled"
    files, seen = {path.name for path in cache.iterdir() if path.is_file()}, []
    (images / "other_2_0000.png").touch()
    run = DefaultPreprocessor.run_case_save

    def watched(*arguments: Any) -> Any:
        seen.append({path.name for path in cache.iterdir() if path.is_file()})
        return run(*arguments)

    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", watched)
    trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY, fold=1))
    assert seen == [files]
    assert {path.name for path in cache.iterdir() if path.is_file()} == files


def test_preprocessing_that_was_interrupted_goes_on(images, settings, preprocessed, monkeypatch, workspace):
    settings(unlabelled(images))
    complete = DefaultPreprocessor.run_case_save
    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", lambda *arguments: cut_short(complete, preprocessed, *arguments))
    with pytest.raises(KeyboardInterrupt):
        trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY))
    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", complete)
    assert preprocessed == ["other_0", "other_1"]
    trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY))
    assert preprocessed[2:] == ["other_1", "other_2", "other_3"], "the last one may be incomplete"
    cache = workspace.preprocessed(PHANTOM_2D[0]) / "nnUNetPlans_2d_unlabelled"
    assert len(list((cache / STAMPS).glob("*.json"))) == 4


def cut_short(complete: Callable[..., Any], preprocessed: list[str], *arguments: Any) -> Any:
    result = complete(*arguments)
    if len(preprocessed) == 2:
        raise KeyboardInterrupt
    return result


def test_images_that_judge_the_training_are_named_and_those_of_its_own_cases_left_out(nnunet, settings, sure):
    raw = Path(os.environ["nnUNet_raw"]) / PHANTOM_2D[0]
    settings(unlabelled(raw / "imagesTr", raw / "imagesTs"))
    trainer = trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY))
    _, validation = trainer.do_split()
    record = json.loads((Path(trainer.output_folder) / "genseg_unlabelled.json").read_text())
    assert record["images"] == {str(raw / "imagesTr"): sorted(validation), str(raw / "imagesTs"): ["ts_000", "ts_001"]}
    expected = [raw / "imagesTr" / f"{case}_0000.png" for case in sorted(validation)]
    expected += [raw / "imagesTs" / f"ts_00{i}_0000.png" for i in range(2)]
    assert record["transductive"] == [str(path) for path in expected]
    assert f"WARNING: {len(expected)} of the unlabelled images" in log_of(trainer)


def bright(self: Teacher, network_input: torch.Tensor) -> torch.Tensor:
    """A good teacher: what it labels is where the image says so, also in a mirror image."""
    value = 40 * (network_input[:, :1] - network_input[:, :1].mean())
    return torch.cat([-value, value, torch.full_like(value, -40)], dim=1)


def at_the_left(self: Teacher, network_input: torch.Tensor) -> torch.Tensor:
    """A poor one: it labels what lies in one corner of a patch, whatever that is."""
    value = torch.full_like(network_input[:, :1], -20)
    value[..., : value.shape[-2] // 2, : value.shape[-1] // 2] = 20
    return torch.cat([-value, value, torch.full_like(value, -40)], dim=1)


@pytest.mark.parametrize(("teacher", "agreement", "share"), [(bright, 1.0, 0.6), (at_the_left, 0.0, 0.0)])
def test_a_poor_teacher_lowers_the_share_and_a_good_one_gives_the_whole(images, settings, monkeypatch, teacher, agreement, share):
    monkeypatch.setattr(Teacher, "__call__", teacher)
    settings(unlabelled(images, share=0.6))
    arguments = (GenSegTrainerShort, *PHANTOM_2D, LENGTH)
    trained(make_trainer(*arguments, plans_name=TINY), STOP)
    trainer = resume(*arguments, plans_name=TINY)
    trainer.on_train_start()
    assert trainer._pseudo.quality.agreement == pytest.approx(agreement), "known before the next epoch is over"
    trained(trainer)
    rows = trainer.recorder.progress.rows
    assert [row.get("teacher_agreement") for row in rows] == [*[pytest.approx(agreement)] * 4, None]
    assert [row.get("unlabelled_share") for row in rows[2:]] == [pytest.approx(share), pytest.approx(share), None]
    assert ("pseudo_labels_used" in rows[2]) == (share > 0)
    assert f"unlabelled_share {share:.4g}" in log_of(trainer)
    record = json.loads((Path(trainer.output_folder) / "genseg_unlabelled.json").read_text())
    assert record["share"] == pytest.approx(share)


def test_a_teacher_that_has_not_seen_mirror_images_is_not_measured(images, settings):
    settings(unlabelled(images))
    kind = type("WithoutMirroring", (ShortTraining, GenSegMixin, nnUNetTrainerNoMirroring), {})
    trainer = trained(make_trainer(kind, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY))
    assert "trains without mirroring, so it is not measured how good the teacher is" in log_of(trainer)
    assert trainer._pseudo.trust == 1
    assert "teacher_agreement" not in trainer.recorder.progress.rows[0]


class CannotIgnore(nnUNetTrainer):
    """Its loss has no ignore label, as that of many a trainer of others."""

    def _build_loss(self) -> Any:
        scales = self._get_deep_supervision_scales()
        weights = 1 / 2 ** np.arange(len(scales))
        loss = RobustCrossEntropyLoss()
        if self.label_manager.has_regions:
            dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
            loss = DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
        return DeepSupervisionWrapper(loss, weights / weights.sum())


class TakesForBackground(nnUNetTrainer):
    """Its cross-entropy ignores, but its Dice takes what is to be ignored for background."""

    def _build_loss(self) -> Any:
        loss = super()._build_loss()
        forward = loss.loss.dc.forward
        loss.loss.dc.forward = lambda output, target, loss_mask=None: forward(output, target)
        return loss


@pytest.mark.parametrize("host", [CannotIgnore, TakesForBackground])
@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_where_the_loss_cannot_ignore_whole_patches_are_left_out(folder, settings, sure, regions, host):
    raw = Kind(regions=regions).write(folder / "nnUNet_raw", DATASET_ID)
    settings(unlabelled(raw / "imagesTs", confidence=0.55))
    plan(DATASET_ID, "2d")
    trainer = make_trainer(type("Mixed", (ShortTraining, GenSegMixin, host), {}), raw.name, "2d", LENGTH)
    trainer.initialize()
    trainer._own_loss = trainer.loss
    steps = watch_targets(trainer, 3)
    trained(trainer)
    assert "the loss of Mixed cannot ignore voxels" in log_of(trainer)
    assert not any(ignored for _, ignored, _ in steps)
    assert all(own for _, _, own in steps)
    assert trainer.recorder.progress.rows[3]["pseudo_labels_used"] > 0


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_the_loss_that_ignores_is_the_trainers_own_where_nothing_is_ignored(folder, settings, regions):
    raw = Kind(regions=regions).write(folder / "nnUNet_raw", DATASET_ID)
    settings(unlabelled(raw / "imagesTs"))
    plan(DATASET_ID, "2d")
    trainer = make_trainer(GenSegTrainerShort, raw.name, "2d", "1,1,1,1,0")
    trainer.initialize()
    loss, batches = trainer._build_ignoring_loss(trainer.network), trainer._batches
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    output = [torch.randn_like(level) for level in trainer.network(torch.zeros(2, 3, 32, 32))]
    expected = trainer.loss(output, batches.to_target(labels, batches.codec))
    torch.testing.assert_close(loss(output, batches.to_target(labels, batches.pseudo)), expected)


def test_the_teacher_is_tried_before_its_labels_are_trusted(images, settings, monkeypatch):
    settings(unlabelled(images))
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH, plans_name=TINY)
    trainer.on_train_start()
    asked, label = [], Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, image: (asked.append(len(image)), label(self, image))[1])
    try_largest_steps(trainer)
    assert asked == [2], "all patches of the batch"
    assert trainer._pseudo.quality.agreement == 0, "as before"


def test_unlabelled_patches_are_mirrored_with_their_labels(images, settings, sure, monkeypatch):
    settings(unlabelled(images))
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY)
    trainer.on_train_start()
    parts = trainer._batches.parts(next(trainer.dataloader_train))
    parts.labels[0] = 0
    parts.labels[0, 2:12, 5:10] = 1
    plain = torch.arange(parts.image[0].numel()).view(1, *parts.image[0].shape).float()
    monkeypatch.setattr(trainer._pseudo.cases, "patches", lambda count: [(plain, "other")] * count)
    trainer._pseudo.labels.observe(parts.labels)
    seen = set()
    for _ in range(40):
        ground = trainer._pseudo.ground(parts, {"deformation": [0]}, 1.0)
        for axes in ((), (1,), (2,), (1, 2)):
            if torch.equal(ground.image[0], plain[0].flip(axes)):
                expected = trainer._pseudo.labels.read(AsIfTrained.logits(plain))[0][0]
                assert torch.equal(ground.labels[0], expected.flip([axis - 1 for axis in axes]))
                seen.add(axes)
    assert seen == {(), (1,), (2,), (1, 2)}


def test_of_a_network_that_is_not_sure_nothing_is_used(images, settings, monkeypatch):
    trust_every_teacher(monkeypatch.setattr)
    settings(unlabelled(images, confidence=0.99))
    trainer = trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH, plans_name=TINY))
    rows = trainer.recorder.progress.rows
    assert [row.get("pseudo_labels_used") for row in rows] == [None, 0, 0, 0, None]
    assert all(np.isfinite(value) for row in rows for value in row.values())


def test_the_second_stage_of_a_cascade_is_refused(folder, settings):
    raw = Kind(dims=3).write(folder / "nnUNet_raw", DATASET_ID)
    settings(unlabelled(raw / "imagesTs"))
    plans = plan(DATASET_ID, "3d_lowres", edit=add_cascade)
    plan_and_preprocess_api.preprocess([DATASET_ID], plans, ["3d_fullres"], [1])
    first = trained(make_trainer(GenSegTrainerShort, raw.name, "3d_lowres", "1,1,1,1,0", plans_name=plans))
    assert (Path(first.output_folder) / "genseg_unlabelled.json").is_file()
    second = make_trainer(GenSegTrainerShort, raw.name, "3d_cascade_fullres", "1,1,1,1,0", plans_name=plans)
    with pytest.raises(GenSegError, match="second stage of a cascade"):
        second.run_training()


def wrong_channels(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not there": (shutil.rmtree, "is not a folder"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no images"),
    "channels": (wrong_channels, "has 6 channels, but the dataset has 3"),
    "damaged": (lambda folder: (folder / "other_1_0000.png").write_bytes(b"no image"), "case other_1 in .* cannot be read"),
}


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=list(FAULTS))
def test_a_folder_that_cannot_be_used_is_refused_before_the_training(images, settings, spoil, message):
    settings(unlabelled(images))
    spoil(images)
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0", plans_name=TINY)
    with pytest.raises(GenSegError, match=message):
        trainer.run_training()
    assert trainer.current_epoch == 0


def test_a_training_goes_on_with_the_same_images_or_not_at_all(images, settings, sure):
    settings(unlabelled(images))
    arguments = (GenSegTrainerShort, *PHANTOM_2D, LENGTH)
    trained(make_trainer(*arguments, plans_name=TINY), STOP)
    (images / "other_3_0000.png").unlink()
    with pytest.raises(GenSegError, match="unlabelled images"):
        resume(*arguments, plans_name=TINY).run_training()


def train_together(rank: int, folder: Path, dataset: str, configuration: str) -> None:
    AsIfTrained.patch(setattr)
    processes.default_num_processes = 1  # of each of the two
    trainer = on_cpu(dataset, configuration, LENGTH)
    trained(trainer, STOP)
    learned = everything_learned(trainer)
    used = trainer.recorder.progress.rows[-1].get("pseudo_labels_used", 0.0)
    torch.save({"learned": learned, "teacher": trainer._pseudo.teacher.state_dict(), "used": used}, folder / f"rank{rank}.pt")


def test_two_processes_learn_the_same_from_one_cache(images, settings, preprocessed, workspace, nnunet):
    settings(unlabelled(images))
    one, other = in_processes(train_together, nnunet, *PHANTOM_2D)
    assert not list(differences(one["learned"]["network"], other["learned"]["network"]))
    assert not list(differences(one["teacher"], other["teacher"]))
    assert one["used"] > 0
    cache = workspace.preprocessed(PHANTOM_2D[0]) / "nnUNetPlans_2d_unlabelled"
    assert len(list((cache / STAMPS).glob("*.json"))) == 4
