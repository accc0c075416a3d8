"""A generator trained alone on data that nnU-Net planned, and trainings that start from it."""

from __future__ import annotations

import json
import multiprocessing.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from safetensors.torch import load_file

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.cli import external_trainers
from nnunetv2_genseg.synthesis.mask_sources import MASK_SOURCES
from nnunetv2_genseg.trainers import GenSegTrainer, GenSegTrainerShort
from nnunetv2_genseg.trainers.building import start_from_pretrained
from nnunetv2_genseg.trainers.pretraining import REPORTS, JoinedDataset, Pretraining, pretrain
from nnunetv2_genseg.trainers.unlabelled import preprocess_unlabelled

from .conftest import TINY, StoppedError, make_trainer, resume, seed_everything, stop_after
from .datasets import Kind, plan, use_threads
from .test_coverage import add_cascade
from .test_distributed import in_processes, on_cpu

PHANTOM_2D = ("Dataset901_Phantom2D", "2d")
PHANTOM_3D = ("Dataset902_Phantom3D", "3d_fullres")
LENGTH = "4,2,1,1,0"
DATASET_ID = 911
Pretrain = Callable[..., Path]


@pytest.fixture
def pretrained(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrain:
    """Trains a generator, checks that nothing was left behind, and returns its folder."""
    multiprocessing.util.get_temp_dir()  # made now and kept: for the loaders' sockets the next path is too long
    temporary = nnunet / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("nnUNet_extTrainer", external_trainers())

    def run(dataset: str, configuration: str, **options: Any) -> Path:
        output = nnunet / "made" / "generator"
        chosen = {"trainer": "GenSegTrainer", "fold": "all", "plans": TINY, "iterations": 6, "device": "cpu"} | options
        environment = dict(os.environ)
        seed_everything(0)  # nnU-Net's loader draws the cases by numpy's random numbers
        try:
            pretrain(Pretraining(dataset=dataset, configuration=configuration, output=output, **chosen))
        finally:
            assert list(temporary.iterdir()) == []
            assert dict(os.environ) == environment
            assert not (nnunet / "results").exists()
        return output

    return run


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / json.loads((folder / "config.json").read_text())["weights"] / "model.safetensors")


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    """What the generator draws with: the moving average of its weights."""
    generator = trainer.loop.sampler.sources["redraw"].generator
    return {name: weight.detach().clone() for name, weight in generator.average.weights().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def watch_learning(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and class maps that a generator learns from."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    learn = BilevelLoop.training_step

    def watched(self: BilevelLoop, image: torch.Tensor, labels: torch.Tensor) -> None:
        seen.append((image.clone(), labels.clone()))
        learn(self, image, labels)

    monkeypatch.setattr(BilevelLoop, "training_step", watched)
    return seen


def watch_cases(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Cases that were loaded from a dataset that unlabelled ones joined."""
    seen: set[str] = set()
    load = JoinedDataset.load_case

    def watched(self: JoinedDataset, identifier: str) -> Any:
        seen.add(identifier)
        return load(self, identifier)

    monkeypatch.setattr(JoinedDataset, "load_case", watched)
    return seen


def given(name: str) -> str:
    """The name that a file had, of that of its preprocessed case."""
    return re.sub(r"_[0-9a-f]{8}$", "", name)


def unlabelled_in(loaded: set[str]) -> list[str]:
    """Their names as files; one that two folders hold is there twice."""
    return sorted(given(case.removeprefix("unlabelled/")) for case in loaded if case.startswith("unlabelled/"))


def test_a_training_starts_from_the_generator_that_was_trained_alone(pretrained, settings, monkeypatch, nnunet):
    learned = watch_learning(monkeypatch)
    folder = pretrained(*PHANTOM_2D)
    assert len(learned) == 6
    planned = json.loads((Path(os.environ["nnUNet_preprocessed"]) / PHANTOM_2D[0] / f"{TINY}.json").read_text())
    expected = planned["configurations"]["2d"]
    assert learned[0][0].shape == (expected["batch_size"], 3, *expected["patch_size"])
    assert set(torch.cat([labels.unique() for _, labels in learned]).tolist()) == {0, 1, 2}
    with Image.open(folder / "genseg_samples.png") as picture:
        assert min(picture.size) > 100
    assert json.loads((folder / "config.json").read_text())["spacing"] == expected["spacing"]

    settings({"generator": {"pretrained": str(folder)}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH, plans_name=TINY)
    trainer.initialize()
    assert not same(weights_of(trainer), weights_in(folder))
    trainer.on_train_start()
    assert same(weights_of(trainer), weights_in(folder))
    trainer.loop.training_step(*learned[0])
    assert not same(weights_of(trainer), weights_in(folder))
    trainer.loop.rollback.undo("a fault")
    assert same(weights_of(trainer), weights_in(folder)), "the last finite state is the one that was loaded"


def test_a_training_that_is_resumed_needs_the_folder_no_more(pretrained, settings):
    folder = pretrained(*PHANTOM_2D)
    settings({"generator": {"pretrained": str(folder)}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH, plans_name=TINY)
    stop_after(trainer, 2)
    with pytest.raises(StoppedError):
        trainer.run_training()
    shutil.rmtree(folder)
    again = resume(GenSegTrainerShort, *PHANTOM_2D, LENGTH, plans_name=TINY)
    again.on_train_start()
    assert again.current_epoch == 2
    assert same(weights_of(again), weights_of(trainer))
    with pytest.raises(ValueError, match="not the folder of a trained generator"):
        make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH, plans_name=TINY, fold=1).on_train_start()


def start(rank: int, folder: Path, dataset: str, configuration: str) -> None:
    trainer = on_cpu(dataset, configuration, LENGTH)
    trainer.on_train_start()
    torch.save(weights_of(trainer), folder / f"rank{rank}.pt")


def test_every_process_starts_from_it(pretrained, settings, nnunet):
    folder = pretrained(*PHANTOM_2D, plans="nnUNetPlans", iterations=1)
    settings({"generator": {"pretrained": str(folder)}})
    for weights in in_processes(start, nnunet, *PHANTOM_2D):
        assert same(weights, weights_in(folder))


def test_images_without_labels_take_part(pretrained, workspace, monkeypatch):
    images = workspace.folder / "nnUNet_raw" / PHANTOM_2D[0] / "imagesTs"
    loaded, learned = watch_cases(monkeypatch), watch_learning(monkeypatch)
    folder = pretrained(*PHANTOM_2D, images=(images,), iterations=20)
    assert unlabelled_in(loaded) == ["ts_000", "ts_001"]
    assert {case for case in loaded if case.startswith("labelled/")} >= {"labelled/tr_000", "labelled/tr_001"}
    assert len(learned) == 20
    assert all(value.isfinite().all() for value in weights_in(folder).values())


def test_images_of_another_format_of_its_own_names_join_it(pretrained, workspace, monkeypatch, tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    source = next((workspace.folder / "nnUNet_raw" / PHANTOM_2D[0] / "imagesTs").iterdir())
    for folder in folders:  # one name twice
        folder.mkdir()
        with Image.open(source) as picture:
            picture.save(folder / "a_0001_0000.bmp")
        (folder / "a_0001_0000.json").write_text("{}")
        (folder / "notes.txt").write_text("scanned on Monday")
    loaded = watch_cases(monkeypatch)
    pretrained(*PHANTOM_2D, images=folders, iterations=10)
    assert unlabelled_in(loaded) == ["a_0001", "a_0001"]


def test_labelled_cases_stay_half_of_the_training_among_many_unlabelled_ones(pretrained, workspace, monkeypatch, tmp_path):
    source = next((workspace.folder / "nnUNet_raw" / PHANTOM_2D[0] / "imagesTs").iterdir())
    for i in range(50):
        shutil.copy(source, tmp_path / f"a{i}_0000.png")
    loaded: list[str] = []
    load = JoinedDataset.load_case
    monkeypatch.setattr(JoinedDataset, "load_case", lambda self, case: (loaded.append(case), load(self, case))[1])
    pretrained(*PHANTOM_2D, images=(tmp_path,), iterations=30)
    labelled = sum(case.startswith("labelled/") for case in loaded) / len(loaded)
    assert 0.4 < labelled < 0.65


def test_a_name_that_ends_as_nnunets_segmentations_do_is_a_name(pretrained, workspace, monkeypatch, tmp_path):
    source = next((workspace.folder / "nnUNet_raw" / PHANTOM_2D[0] / "imagesTs").iterdir())
    for name in ("p", "p_seg"):
        shutil.copy(source, tmp_path / f"{name}_0000.png")
    loaded = watch_cases(monkeypatch)
    pretrained(*PHANTOM_2D, images=(tmp_path,), iterations=20)
    assert unlabelled_in(loaded) == ["p", "p_seg"]


def test_volumes_in_a_format_that_several_readers_share_are_read(pretrained, monkeypatch, tmp_path):
    volume = np.random.default_rng(0).normal(size=(20, 24, 18)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a_0000.tif", volume)
    loaded = watch_cases(monkeypatch)
    pretrained(*PHANTOM_3D, plans="nnUNetPlans", images=(tmp_path,), iterations=4)
    assert unlabelled_in(loaded) == ["a"]


def test_a_slice_whose_axes_the_plans_exchange_is_refused(workspace, tmp_path):
    """Else it would be resampled along the axis that it does not have."""
    with Image.open(next((workspace.folder / "nnUNet_raw" / PHANTOM_2D[0] / "imagesTs").iterdir())) as picture:
        picture.convert("L").save(tmp_path / "a_0000.png")
    planned = json.loads((workspace.preprocessed(PHANTOM_3D[0]) / "nnUNetPlans.json").read_text())
    planned["configurations"]["2d"] = planned["configurations"]["3d_fullres"] | {"patch_size": [16, 16], "spacing": [1.0, 1.0]}
    description = json.loads((workspace.preprocessed(PHANTOM_3D[0]) / "dataset.json").read_text())
    for order, refused in (([0, 1, 2], False), ([2, 0, 1], True)):
        plans = PlansManager(planned | {"transpose_forward": order, "transpose_backward": list(np.argsort(order).tolist())})
        target = tmp_path / str(refused)
        target.mkdir()
        with pytest.raises(ValueError, match=r"case a in .* is a single slice") if refused else nullcontext():
            preprocess_unlabelled([tmp_path], plans, plans.get_configuration("2d"), description, target)
    assert [given(name) for name in nnUNetDatasetBlosc2(str(tmp_path / "False")).identifiers] == ["a"]


def test_a_mask_source_does_not_learn_for_nothing(pretrained, settings, monkeypatch):
    settings({"masks": {"source": "shape_vae"}})
    monkeypatch.setattr(MASK_SOURCES["shape_vae"], "training_step", None)
    pretrained(*PHANTOM_2D, iterations=2)


KINDS = {
    "2d": (Kind(), "2d"),
    "3d two channels": (Kind(dims=3, channels=("CT", "T2"), margin=0.1), "3d_fullres"),
    "3d slices": (Kind(dims=3), "2d"),
    "regions": (Kind(regions=True), "2d"),
    "ignore": (Kind(ignore=True), "2d"),
    "regions and ignore": (Kind(dims=3, regions=True, ignore=True), "3d_fullres"),
}


@pytest.mark.parametrize(("kind", "configuration"), KINDS.values(), ids=list(KINDS))
def test_every_kind_of_dataset_can_be_joined(kind, configuration, pretrained, monkeypatch, tmp_path):
    use_threads(monkeypatch)
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(tmp_path / name))
    raw = kind.write(tmp_path / "nnUNet_raw", DATASET_ID)
    plans_name = plan(DATASET_ID, configuration)
    base = tmp_path / "nnUNet_preprocessed" / raw.name
    plans = PlansManager(str(base / f"{plans_name}.json"))
    settings = plans.get_configuration(configuration)
    target = tmp_path / "unlabelled"
    target.mkdir()
    preprocess_unlabelled([raw / "imagesTr"], plans, settings, json.loads((raw / "dataset.json").read_text()), target)
    ours, theirs = nnUNetDatasetBlosc2(str(target)), nnUNetDatasetBlosc2(str(base / settings.data_identifier))
    assert [given(name) for name in ours.identifiers] == theirs.identifiers
    for one, other in zip(ours.identifiers, theirs.identifiers, strict=True):
        image, labels, _, properties = ours.load_case(one)
        expected, _, _, labelled = theirs.load_case(other)
        np.testing.assert_array_equal(image[:], expected[:])
        assert set(np.unique(labels[:])) <= {-1, 0}
        assert properties["class_locations"].keys() == labelled["class_locations"].keys()

    learned = watch_learning(monkeypatch)
    folder = pretrained(raw.name, configuration, plans=plans_name, images=(raw / "imagesTs",), iterations=3)
    assert len(learned) == 3
    assert learned[0][0].shape[2:] == tuple(settings.patch_size)
    found = json.loads((folder / "config.json").read_text())
    assert found["spacing"] == list(settings.spacing)
    assert len(found["channels"]) == (len(kind.channels) or (1 if kind.dims == 3 else 3))


def test_in_3d_and_in_a_cascade(pretrained, settings, monkeypatch, tmp_path, workspace):
    slices = tmp_path / "slices"
    slices.mkdir()
    with Image.open(workspace.folder / "nnUNet_raw" / PHANTOM_2D[0] / "imagesTr" / "tr_000_0000.png") as picture:
        picture.convert("L").save(slices / "tr_000_0000.png")
    folder = pretrained(*PHANTOM_3D, plans="nnUNetPlans", iterations=2)
    settings({"generator": {"pretrained": str(folder)}})
    trainer = make_trainer(GenSegTrainer, *PHANTOM_3D, LENGTH)
    trainer.initialize()
    start_from_pretrained(trainer)
    assert same(weights_of(trainer), weights_in(folder))

    preprocessed = tmp_path / "nnUNet_preprocessed" / PHANTOM_3D[0]
    shutil.copytree(Path(os.environ["nnUNet_preprocessed"]) / PHANTOM_3D[0], preprocessed)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    add_cascade(plans)
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    before = weights_in(folder)
    shutil.rmtree(trainer.output_folder_base)
    shutil.rmtree(tmp_path / "results")
    with pytest.raises(ValueError, match=r"case tr_000 in .* is a single slice, but the configuration needs more"):
        pretrained(*PHANTOM_3D, plans="nnUNetPlans", images=(slices,))
    again = pretrained(PHANTOM_3D[0], "3d_cascade_fullres", plans="nnUNetPlans", iterations=1)
    assert not same(weights_in(again), before), "it went on from where it was"
    assert json.loads((again / "config.json").read_text())["normalization"] == ["ZScoreNormalization"]


@pytest.mark.parametrize(
    ("trainer", "network"), [("GenSegTrainerVAE", "weights_1"), ("GenSegTrainerDiffusion", "weights_1/unet")]
)
def test_a_trainers_preset_is_followed(trainer, network, pretrained, settings):
    folder = pretrained(*PHANTOM_2D, trainer=trainer, iterations=2)
    (weights,) = folder.rglob("*.safetensors")
    assert str(weights.parent.relative_to(folder)) == network
    settings({"generator": {"pretrained": str(folder)}})
    with pytest.raises(ValueError, match=r"does not fit: family is '(vae|diffusion)' there, 'gan' here"):
        make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH, plans_name=TINY).on_train_start()


def test_a_fold_leaves_its_validation_cases_out(pretrained, workspace, monkeypatch):
    images = workspace.folder / "nnUNet_raw" / PHANTOM_2D[0] / "imagesTs"
    loaded = watch_cases(monkeypatch)
    pretrained(*PHANTOM_2D, fold="0", images=(images,), iterations=20)
    splits = json.loads((workspace.preprocessed(PHANTOM_2D[0]) / "splits_final.json").read_text())
    seen = {case.removeprefix("labelled/") for case in loaded if case.startswith("labelled/")}
    assert seen == set(splits[0]["train"])


def test_a_fold_is_warned_of_a_generator_that_saw_its_validation_cases(pretrained, settings, workspace):
    def seen_by(folder: Path) -> set[str]:
        return set(json.loads((folder / "config.json").read_text())["trained_on"][PHANTOM_2D[0]])

    def warnings(fold: int | str) -> str:
        trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, LENGTH, plans_name=TINY, fold=fold)
        trainer.on_train_start()
        return "".join(line for line in Path(trainer.log_file).read_text().splitlines() if "WARNING" in line)

    folder = pretrained(*PHANTOM_2D, iterations=1, fold="0")
    split = json.loads((workspace.preprocessed(PHANTOM_2D[0]) / "splits_final.json").read_text())[0]
    assert seen_by(folder) == set(split["train"])
    settings({"generator": {"pretrained": str(folder)}})
    assert warnings(0) == ""
    shutil.rmtree(folder.parent.parent / "results")

    settings({})
    kept = pretrained(*PHANTOM_2D, iterations=1).rename(folder.parent / "all")
    settings({"generator": {"pretrained": str(kept)}})
    assert f"trained on {len(split['val'])} of the {len(split['val'])} validation cases" in warnings(0)
    assert warnings("all") == ""
    shutil.rmtree(folder.parent.parent / "results")
    folder = pretrained(*PHANTOM_2D, iterations=1, fold="0")
    assert seen_by(folder) == {*split["train"], *split["val"]}, "what it started from has seen them"


def test_a_step_that_is_not_finite_is_undone_and_a_long_run_is_written_several_times(pretrained, monkeypatch, nnunet):
    learn, calls = BilevelLoop.training_step, []

    def broken(self: BilevelLoop, image: torch.Tensor, labels: torch.Tensor) -> None:
        calls.append(0)
        if len(calls) == 2 * REPORTS - 1:
            raise KeyboardInterrupt
        learn(self, image / (0 if len(calls) == 3 else 1), labels)

    monkeypatch.setattr(BilevelLoop, "training_step", broken)
    with pytest.raises(KeyboardInterrupt):
        pretrained(*PHANTOM_2D, iterations=2 * REPORTS)
    assert all(value.isfinite().all() for value in weights_in(nnunet / "made" / "generator").values())


def test_training_in_processes_of_its_own_ends_them(pretrained, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    pretrained(*PHANTOM_2D, iterations=2)
    assert multiprocessing.active_children() == []
