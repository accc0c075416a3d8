"""`genseg generate`: pairs of whole images in the form of the raw dataset."""

from __future__ import annotations

import hashlib
import json
import multiprocessing.dummy
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.experiment_planning import verify_dataset_integrity as integrity
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_genseg import cli
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES
from nnunetv2_genseg.trainers import GenSegTrainerShort, pair_files, resuming
from nnunetv2_genseg.trainers.raw_cases import RawCases

from .conftest import StoppedError, make_trainer
from .datasets import REGIONS, Kind, plan
from .trainings import predict

UNCHANGED = ("deformation={displacement: 0, rotation: 0, scaling: 0}", "intensity.tone=0")
ALONE = ("mixing.sources={deformation: 1, redraw: 0}",)
KINDS = {
    "photographs": (Kind(), "2d"),
    "volumes": (Kind(dims=3, channels=("CT", "T2"), every=3, margin=0.2), "3d_fullres"),
    "slices": (Kind(dims=3, channels=("MRI", "T2"), margin=0.2), "2d"),
    "regions": (Kind(regions=True, ignore=True), "2d"),
}
Generate = Callable[..., Path]


def coarser(plans: dict[str, Any]) -> None:
    """Makes nnU-Net resample and turn volumes: the plans' voxels are larger, and their axes in another order."""
    if "3d_fullres" in plans["configurations"]:
        configuration = plans["configurations"]["3d_fullres"]
        configuration["spacing"] = [1.3 * configuration["spacing"][axis] for axis in (2, 0, 1)]
        plans["transpose_forward"], plans["transpose_backward"] = [2, 0, 1], [1, 2, 0]


def arrays(path: Path) -> tuple[np.ndarray, Any]:
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), (image.GetSpacing(), image.GetOrigin(), image.GetDirection())


@pytest.fixture
def generate(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Calls `genseg generate`; returns the folder of pairs. `said` holds what was printed."""
    for name in (OVERRIDES, EXTERNAL_TRAINERS):
        monkeypatch.setenv(name, "")

    def call(
        configuration: str, count: int, *settings: str, out: str = "pairs", into_raw: str = "", options: tuple[str, ...] = ()
    ) -> Path:
        sets = [part for setting in settings for part in ("--set", setting)]
        target = folder / "nnUNet_raw" / into_raw if into_raw else folder / out
        where = ["--into-raw", into_raw] if into_raw else ["-o", str(target)]
        cli.main(["generate", "910", configuration, "0", "-n", str(count), *where, "-device", "cpu", *options, *sets])
        call.said = capsys.readouterr().out  # type: ignore[attr-defined]
        return target

    return call


@pytest.fixture
def refused(generate: Generate, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls `genseg generate`, which must end with a message; returns it."""

    def call(*arguments: Any, **options: Any) -> str:
        with pytest.raises(SystemExit) as ended:
            generate(*arguments, **options)
        assert ended.value.code == 2
        message = capsys.readouterr().err.split("genseg: ")[-1]
        assert "Traceback" not in message
        return message

    return call


def planned(folder: Path, name: str, edit: Any = coarser) -> tuple[Path, str]:
    """A planned dataset of a kind, in which nnU-Net resamples volumes; its raw folder and its configuration."""
    kind, configuration = KINDS[name]
    raw = kind.write(folder / "nnUNet_raw", 910)
    plan(910, configuration, edit=edit)
    return raw, configuration


def record_of(pairs: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((pairs / "provenance.json").read_text())
    return content


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", KINDS)
def test_a_pair_that_is_not_changed_is_the_raw_case(name, folder, generate, monkeypatch):
    """Nothing is lost on the way through nnU-Net's normalisation, cropping and transposing."""
    raw, configuration = planned(folder, name)
    pairs = generate(configuration, 5, *UNCHANGED, *ALONE)
    training = json.loads((folder / "nnUNet_preprocessed" / raw.name / "splits_final.json").read_text())[0]["train"]
    record = record_of(pairs)
    used = Counter(case for pair in record["pairs"].values() for case in pair["cases"])
    assert set(used) == set(training) and max(used.values()) == 2, "training cases alone, in turn"
    for pair_name, pair in record["pairs"].items():
        assert not pair["new_mask"]
        case = pair["cases"][0]
        inside = np.any([arrays(path)[0] != 0 for path in (raw / "imagesTr").glob(f"{case}_*")], axis=0)
        for file in pair["files"]:
            there, geometry = arrays(pairs / file)
            own, own_geometry = arrays(raw / file.replace(pair_name, case))
            assert (there.dtype, there.shape) == (own.dtype, own.shape)
            if file.startswith("images"):
                assert geometry == own_geometry
                np.testing.assert_allclose(there, own, atol=0 if own.dtype == np.uint8 else 1e-5 * np.ptp(own))
            else:
                nonzero = inside if inside.shape == own.shape else inside.any(axis=-1)
                np.testing.assert_array_equal(there[nonzero], own[nonzero])
    threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    monkeypatch.setattr(integrity, "multiprocessing", threads)
    integrity.verify_dataset_integrity(str(pairs), 1)
    description = json.loads((pairs / "dataset.json").read_text())
    assert description == json.loads((raw / "dataset.json").read_text()) | {"numTraining": 5}
    if name == "regions":
        assert description["labels"] == REGIONS | {"ignore": 3}
        assert set(np.unique(arrays(pairs / "labelsTr" / "synthetic_00000.png")[0])) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", KINDS)
def test_a_raw_case_as_a_generator_sees_it_is_the_preprocessed_one(name, folder):
    raw, configuration = planned(folder, name)
    preprocessed = folder / "nnUNet_preprocessed" / raw.name
    plans = PlansManager(str(preprocessed / "nnUNetPlans.json"))
    configured = plans.get_configuration(configuration)
    cases = RawCases(plans, configured, json.loads((raw / "dataset.json").read_text()), raw, ["tr_000"])
    case = cases.read("tr_000")
    image, labels = cases.planned(case)
    source = str(preprocessed / configured.data_identifier)
    own, segmentation, _, _ = infer_dataset_class(source)(source).load_case("tr_000")
    np.testing.assert_allclose(image.numpy(), own[:], atol=2e-4)
    assert torch.equal(labels, cases.classes("tr_000", segmentation[:][0]))
    assert case.image.amax() > image.amax() + 0.01 or name != "volumes", "of CT what nnU-Net clips is kept"


@pytest.mark.parametrize("name", ["photographs", "volumes", "slices"])
def test_image_and_mask_are_deformed_alike(name, folder, generate):
    raw, configuration = planned(folder, name)
    for path in (raw / "imagesTr").iterdir():  # the image shows the mask
        image, _ = arrays(path)
        labels, _ = arrays(raw / "labelsTr" / path.name.replace("_0000", "").replace("_0001", ""))
        shown = (1 + labels.astype(image.dtype)) * 80
        shown = np.repeat(shown[..., None], 3, axis=-1) if image.shape != labels.shape else np.where(image == 0, 0, shown)
        saved = sitk.GetImageFromArray(shown.astype(image.dtype), isVector=image.shape != labels.shape)
        saved.SetSpacing(sitk.ReadImage(str(path)).GetSpacing())
        sitk.WriteImage(saved, str(path))
    pairs = generate(configuration, 3, "intensity.tone=0", *ALONE)
    record = record_of(pairs)
    for pair_name, pair in record["pairs"].items():
        image, labels = arrays(pairs / next(iter(pair["files"])))[0], arrays(pairs / list(pair["files"])[-1])[0]
        image = image[..., 0] if image.shape != labels.shape else image
        own = arrays(raw / "labelsTr" / Path(list(pair["files"])[-1]).name.replace(pair_name, pair["cases"][0]))[0]
        assert pair["new_mask"] and 0.1 < np.sum(labels != own) / np.sum(own > 0) < 3
        seen = np.clip(np.rint(image / 80) - 1, 0, 2)
        inside = image > 40
        assert np.mean(seen[inside] == labels[inside]) > 0.93, "a voxel at a border may be between two classes"


def test_intensities_are_not_below_0_or_the_lowest_of_the_case(folder, generate, refused, monkeypatch):
    raw, configuration = planned(folder, "volumes")
    with monkeypatch.context() as patch:
        real = sum(path.stat().st_size for part in ("imagesTr", "labelsTr") for path in (raw / part).iterdir())
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * real))
        assert "4 pairs need about" in refused(configuration, 4, *ALONE), "floats are compressed less than whole numbers"
    pairs = generate(configuration, 4, "intensity.tone=2", *ALONE)
    bounded = 0
    for name, pair in record_of(pairs)["pairs"].items():
        for file in list(pair["files"])[:-1]:
            lowest = min(0, arrays(raw / file.replace(name, pair["cases"][0]))[0].min())
            there = arrays(pairs / file)[0].min()
            assert there >= lowest
            bounded += there == lowest
    assert bounded


def test_an_interrupted_run_goes_on_to_the_same_bytes(folder, generate, refused, monkeypatch):
    _, configuration = planned(folder, "photographs")
    whole = files_in(generate(configuration, 5, *ALONE, out="whole"))
    writing, done = pair_files.write_images, []

    def stopping(*arguments: Any) -> None:
        if len(done) == 3:
            raise StoppedError
        done.append(writing(*arguments))

    monkeypatch.setattr(pair_files, "write_images", stopping)
    with pytest.raises(StoppedError):
        generate(configuration, 5, *ALONE)
    assert len(record_of(folder / "pairs")["pairs"]) == 3
    assert not (folder / "pairs" / "dataset.json").exists(), "it is not taken for complete"
    monkeypatch.setattr(pair_files, "write_images", writing)
    (folder / "pairs" / "labelsTr" / "synthetic_00001.png").write_bytes(b"")
    (folder / "pairs" / "imagesTr" / "synthetic_00008_0000.png").write_bytes(b"left by a process that was killed")
    pairs = generate(configuration, 5, *ALONE)
    assert "5 pairs are in" in generate.said and "2 were there already" in generate.said
    assert files_in(pairs) == whole
    # what was begun stays what it is
    assert "seed: 0 there, 1 now" in refused(configuration, 5, *ALONE, options=("--seed", "1"))
    assert "deformation.rotation: 30.0 there, 5" in refused(configuration, 5, *ALONE, "deformation.rotation=5")
    assert "5 pairs already; -n must be 5 or more" in refused(configuration, 4, *ALONE)
    assert files_in(pairs) == whole
    # more pairs of the same, and others of another seed
    monkeypatch.setattr(pair_files, "write_images", stopping)
    with pytest.raises(StoppedError):
        generate(configuration, 6, *ALONE)
    assert not (pairs / "dataset.json").exists(), "its number of cases would be wrong"
    monkeypatch.setattr(pair_files, "write_images", writing)
    more = generate(configuration, 6, *ALONE)
    assert {name: content for name, content in files_in(more).items() if name in whole and name.startswith("images")} == {
        name: content for name, content in whole.items() if name.startswith("images")
    }
    other = files_in(generate(configuration, 1, *ALONE, out="other", options=("--seed", "1")))
    assert other["imagesTr/synthetic_00000_0000.png"] != whole["imagesTr/synthetic_00000_0000.png"]


def test_what_is_wrong_is_one_message_and_leaves_no_pair(folder, generate, refused, monkeypatch):
    raw, configuration = planned(folder, "photographs")
    pairs = folder / "pairs"
    alone = refused(configuration, 2, "mixing.sources={deformation: 0, redraw: 1}")
    assert "neither the fold folder nor generator.pretrained holds a trained generator" in alone
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        assert "2 pairs need about 0.0 GB" in refused(configuration, 2)
    assert not pairs.exists()
    pairs.mkdir()
    (pairs / "thesis.txt").write_text("precious")
    assert "did not write (thesis.txt)" in refused(configuration, 2)
    (pairs / "thesis.txt").unlink()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pair_files, "write_images", full)
        assert "could not write pair synthetic_00000" in refused(configuration, 2)
    assert {path.name for path in pairs.rglob("*")} == {"imagesTr", "labelsTr", "provenance.json"}
    case = next(path for path in (raw / "labelsTr").iterdir() if "tr_000" not in path.name)
    case.unlink()
    assert "lacks the raw image or mask of 1 of 4 training cases" in refused(configuration, 2)


def test_without_a_trained_generator_pairs_are_deformed_and_it_is_said(folder, generate):
    _, configuration = planned(folder, "photographs")
    pairs = generate(configuration, 4)
    assert "pairs are made by deformation alone" in generate.said
    record = record_of(pairs)
    assert {pair["source"] for pair in record["pairs"].values()} == {"deformation"}
    assert record["origin"]["generator"] is None


@pytest.mark.parametrize(("name", "mode"), [("photographs", "tissue"), ("volumes", "residual"), ("slices", "residual")])
def test_a_generator_draws_whole_images(name, mode, folder, generate):
    """A family that has nothing to learn, without deformation: what differs from the raw case is drawn."""
    raw, configuration = planned(folder, name)
    settings = ("mixing.sources={deformation: 0, redraw: 1}", f"redraw.mode={mode}", *UNCHANGED)
    pairs = generate(configuration, 2, *settings, options=("-tr", "GenSegTrainerGMM"))
    record = record_of(pairs)
    for pair_name, pair in record["pairs"].items():
        assert (pair["source"], pair["generator"]) == ("redraw", "gmm")
        case = pair["cases"][0]
        for file in pair["files"]:
            there, own = arrays(pairs / file)[0], arrays(raw / file.replace(pair_name, case))[0]
            if file.startswith("labels"):
                assert np.mean(there != own) < 0.02  # only where the image is 0, and nnU-Net crops
            else:
                if mode == "tissue":
                    mask = arrays(pairs / f"labelsTr/{pair_name}.png")[0] == 1
                    inside = mask[:, 1:] & mask[:, :-1]
                    drawn, real = (np.diff(values.astype(float), axis=1)[inside].std() for values in (there, own))
                    assert 0.6 < drawn / real < 1.5, "the noise within a class is that of real cases"
                changed = np.abs(there.astype(float) - own)[own != 0]
                assert 0.002 * np.ptp(own) < changed.mean() < 0.5 * np.ptp(own)
                if name != "photographs" and "_0001" in file:
                    assert (there[own == 0] == 0).mean() > 0.98, "the outside stays empty"
    again = generate(configuration, 2, *settings, options=("-tr", "GenSegTrainerGMM"), out="again")
    assert files_in(again) == files_in(pairs)


@pytest.mark.parametrize(("name", "mode"), [("photographs", "tissue"), ("volumes", "residual"), ("slices", "residual")])
def test_images_are_drawn_for_given_masks(name, mode, folder, generate, refused):
    _, configuration = planned(folder, name)
    own = folder / "own"
    own.mkdir()
    shape, spacing = ((40, 37), (1.0, 1.0)) if name == "photographs" else ((6, 37, 28), (1.2, 0.9, 4.0))
    ending = ".png" if name == "photographs" else ".nii.gz"
    options = ("-tr", "GenSegTrainerGMM", "--masks", str(own))
    assert "holds no masks" in refused(configuration, 2, options=options)
    for i in range(2):
        mask = np.zeros(shape, np.uint8)
        mask[..., 8 + 5 * i : 30, 6:22], mask[..., 14:22, 10 : 16 + i] = 1, 2
        saved = sitk.GetImageFromArray(mask)
        saved.SetSpacing(spacing)
        sitk.WriteImage(saved, str(own / f"own_{i}{ending}"))
    pairs = generate(configuration, 3, f"redraw.mode={mode}", "intensity.shift=0", options=options)
    record = record_of(pairs)
    assert [pair["mask"] for pair in record["pairs"].values()] == [f"own_{i}{ending}" for i in (0, 1, 0)]
    assert set(record["origin"]["masks"]) == {f"own_{i}{ending}" for i in range(2)}
    contrast = []
    for pair_name, pair in record["pairs"].items():
        image, geometry = arrays(pairs / "imagesTr" / f"{pair_name}_0000{ending}")
        labels, _ = arrays(pairs / "labelsTr" / f"{pair_name}{ending}")
        expected, own_geometry = arrays(own / pair["mask"])
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_allclose(geometry[0], own_geometry[0], rtol=1e-6)
        image = image[..., 0] if name == "photographs" else image
        assert image.shape == labels.shape
        contrast.append((image[labels == 2].mean() - image[labels == 0].mean()) / image.std())
    assert np.mean(contrast) > 0.2, "the inner structure of the phantoms is bright"
    (own / f"own_0{ending}").write_bytes(b"no image")
    assert "cannot be read" in refused(configuration, 3, options=options)
    sitk.WriteImage(saved * 0 + 7, str(own / f"own_0{ending}"))
    assert "the label map holds [7], allowed are [0, 1, 2]" in refused(configuration, 3, options=options)
    sitk.WriteImage(saved, str(own / f"own_0{ending}"))
    assert "masks.own_0" in refused(configuration, 3, f"redraw.mode={mode}", "intensity.shift=0", options=options)
    assert "--masks needs a generator" in refused(configuration, 3, options=("--masks", str(own)), out="other")


def test_the_generator_of_the_fold_draws_with_the_settings_of_its_training(folder, generate, refused, settings):
    raw, configuration = planned(folder, "photographs", edit=lambda plans: None)
    settings({"generator": {"width": 0.25}, "mixing": {"sources": {"redraw": 1.0, "deformation": 0}}})
    trainer = make_trainer(GenSegTrainerShort, raw.name, configuration, "2,1,1,1,0")
    trainer.on_train_start()
    resuming.record(trainer, False)
    os.environ.pop("nnUNet_genseg_config")
    options = ("-tr", "GenSegTrainerShort")
    shas = []
    for stem in ("checkpoint_latest", "checkpoint_final"):
        with torch.no_grad():
            for weight in trainer.loop.sampler.sources["redraw"].generator.weights():
                weight.mul_(1.1)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / f"{stem}.pth"))
        origin = record_of(generate(configuration, 1, options=options, out=stem))["origin"]
        assert origin["generator"]["file"] == f"{stem}.genseg-0001.pt"
        assert origin["settings"]["generator.width"] == 0.25
        shas.append(origin["generator"]["sha256"])
    assert shas[0] != shas[1]
    assert "WARNING" not in generate.said
    (Path(trainer.output_folder) / "genseg_unlabelled.json").write_text('{"images": {}, "transductive": ["tr_000_0000.png"]}')
    generate(configuration, 1, options=options, out="checkpoint_final")
    assert "has learned from 1 images, without their labels" in generate.said
    images = [
        (folder / out / "imagesTr" / "synthetic_00000_0000.png").read_bytes() for out in ("checkpoint_latest", "checkpoint_final")
    ]
    assert images[0] != images[1]
    assert "leave the generator's settings" in refused(configuration, 1, "generator.width=0.5", options=options, out="other")
    state = Path(trainer.output_folder) / "checkpoint_final.genseg-0001.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert "is corrupt" in refused(configuration, 1, options=options, out="other")


def test_a_generator_that_was_trained_alone_draws(folder, generate, capsys):
    _, configuration = planned(folder, "photographs")
    small = ("--set", "generator.width=0.1", "-device", "cpu")
    cli.main(["pretrain", "910", configuration, str(folder / "generator"), "--iterations", "1", "-f", "0", *small])
    capsys.readouterr()
    settings = (
        "generator.width=0.1",
        f"generator.pretrained={folder / 'generator'}",
        "mixing.sources={deformation: 0, redraw: 1}",
    )
    record = record_of(generate(configuration, 2, *settings))
    assert "WARNING" not in generate.said
    description = folder / "generator" / "config.json"
    content = json.loads(description.read_text())
    content["trained_on"][next(iter(content["trained_on"]))] += ["tr_000"]
    description.write_text(json.dumps(content))
    generate(configuration, 2, *settings)
    assert "was trained on 1 of the 1 validation cases" in generate.said
    weights = next((folder / "generator").glob("weights_*/model.safetensors")).read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    assert record["origin"]["generator"] == {"family": "gan", "sha256": sha256, "file": str(folder / "generator")}
    assert {pair["generator"] for pair in record["pairs"].values()} == {sha256}


def test_a_damaged_record_is_told(folder, generate, refused):
    _, configuration = planned(folder, "photographs")
    path = generate(configuration, 1, *ALONE) / "provenance.json"
    content = json.loads(path.read_text())
    for damaged in ("{", "[]", "{}", json.dumps(content | {"pairs": [1]}), json.dumps(content | {"pairs": {"a": {}}})):
        path.write_text(damaged)
        assert "provenance.json" in refused(configuration, 1, *ALONE)


def test_pairs_and_real_cases_are_planned_trained_on_and_predicted_by_stock_nnunet(folder, generate, refused, monkeypatch):
    raw, configuration = planned(folder, "regions")
    name = "Dataset911_Mixed"
    mixed = generate(configuration, 2, *ALONE, into_raw=name)
    assert mixed == folder / "nnUNet_raw" / name
    names = [path.name for path in (mixed / "labelsTr").iterdir()]
    assert sorted(names) == [
        f"{case}.png" for case in ("synthetic_00000", "synthetic_00001", *(f"tr_00{i}" for i in range(1, 5)))
    ]
    assert files_in(mixed)["imagesTr/tr_002_0000.png"] == files_in(raw)["imagesTr/tr_002_0000.png"]
    assert json.loads((mixed / "dataset.json").read_text())["numTraining"] == 6
    assert "needs a name such as" in refused(configuration, 2, into_raw="Mixed")
    assert "Dataset911_Mixed already" in refused(configuration, 2, into_raw="Dataset911_Other")
    assert "with_real_cases: True there, False now" in refused(configuration, 2, *ALONE, out=f"nnUNet_raw/{name}")
    plan(911, configuration)
    trainer = make_trainer(nnUNetTrainer, name, configuration, "1,1,1,1,0")
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    (mixed / "imagesTs").mkdir()
    shutil.copy(raw / "imagesTr" / "tr_000_0000.png", mixed / "imagesTs" / "ts_000_0000.png")  # a validation case of the fold
    predict(trainer, folder / "predicted")
