"""`genseg quality`: figures of pairs that `genseg generate` wrote."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg import cli
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES
from nnunetv2_genseg.trainers.fold_network import FoldNetwork
from nnunetv2_genseg.trainers.loading import unaugmented

from .conftest import make_trainer
from .datasets import Kind, plan

KINDS = {
    "photographs": (Kind(), "2d"),
    "volumes": (Kind(dims=3), "3d_fullres"),
    "slices": (Kind(dims=3, channels=("CT", "T2"), margin=0.2), "2d"),
    "regions": (Kind(regions=True, ignore=True), "2d"),
}
PAIRS, STEPS = 8, 40


@dataclass
class Prepared:
    """A dataset, a network that has learned its training cases, and pairs that were made from them."""

    raw: Path
    configuration: str
    results: Path
    """The folder of the fold."""
    pairs: Path
    quality: Callable[..., dict[str, Any]]
    """Calls `genseg quality` for a folder of pairs; `said` holds what was printed."""

    @property
    def sources(self) -> dict[str, str]:
        record = json.loads((self.pairs / "provenance.json").read_text())
        return {name: pair["cases"][0] for name, pair in record["pairs"].items()}

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.pairs, self.pairs.parent / name))


def train(dataset: str, configuration: str, steps: int) -> Path:
    """Fits a network to the training cases, as they are; returns the folder of the fold."""
    trainer: Any = make_trainer(nnUNetTrainer, dataset, configuration, "1,1,1,1,0")
    trainer.enable_deep_supervision = False
    trainer.initialize()
    folder = trainer.preprocessed_dataset_folder
    loader = unaugmented(trainer, infer_dataset_class(folder)(folder, trainer.do_split()[0]), 4, 0.0)
    optimiser = torch.optim.Adam(trainer.network.parameters(), 0.02)
    for _ in range(steps):
        batch = next(loader)
        target = batch["target"]
        loss = trainer.loss(trainer.network(batch["data"]), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    results = Path(trainer.output_folder)
    trainer.save_checkpoint(str(results / "checkpoint_final.pth"))
    (results.parent / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (results.parent / "dataset.json").write_text(json.dumps(trainer.dataset_json))
    return results


@pytest.fixture
def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Prepared]:
    for name in (OVERRIDES, EXTERNAL_TRAINERS):
        monkeypatch.setenv(name, "")

    def call(name: str, steps: int = STEPS) -> Prepared:
        kind, configuration = KINDS[name]
        raw = kind.write(folder / "nnUNet_raw", 910)
        plan(910, configuration)
        results, pairs = train(raw.name, configuration, steps), folder / "pairs"
        cli.main(["generate", "910", configuration, "0", "-n", str(PAIRS), "-o", str(pairs), "-device", "cpu"])
        capsys.readouterr()

        def quality(where: Path, *options: str, fold: str = "0") -> dict[str, Any]:
            arguments = ["quality", "910", configuration, fold, str(where), "-tr", "nnUNetTrainer", "-device", "cpu"]
            cli.main([*arguments, *options])
            quality.said = capsys.readouterr().out  # type: ignore[attr-defined]
            content: dict[str, Any] = json.loads((where / "quality.json").read_text())
            return content

        return Prepared(raw, configuration, results, pairs, quality)

    return call


def change(path: Path, new: Callable[[np.ndarray], np.ndarray]) -> None:
    """Writes a file again with other values."""
    image = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(image)
    changed = sitk.GetImageFromArray(new(values).astype(values.dtype), isVector=image.GetNumberOfComponentsPerPixel() > 1)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))


@pytest.mark.parametrize("name", KINDS)
def test_pairs_are_compared_with_the_real_cases(name, prepare):
    prepared = prepare(name)
    found = prepared.quality(prepared.pairs)
    assert (found["pairs"], found["training_cases"], found["validation_cases"]) == (PAIRS, 4, 1)
    assert list(found["fidelity"]) == (["whole", "inner"] if name == "regions" else ["outer", "inner"])
    ending = ".png" if KINDS[name][0].dims == 2 else ".nii.gz"
    files = [sorted(map(str, (prepared.raw / "imagesTr").glob("tr_000_*")))]
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(prepared.results.parent), (0,))
    target = prepared.pairs.parent / f"predicted{ending}"
    image, properties = predictor.plans_manager.image_reader_writer_class().read_images(files[0])
    predictor.predict_single_npy_array(image, properties, None, str(target)[: -len(ending)])
    manager, reader = predictor.label_manager, predictor.plans_manager.image_reader_writer_class()
    wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    own = compute_metrics(str(prepared.raw / "labelsTr" / f"tr_000{ending}"), str(target), reader, wanted, manager.ignore_label)
    for value, of in zip(wanted, found["fidelity"].values(), strict=True):
        assert of["real"]["mean"] == pytest.approx(own["metrics"][value]["Dice"], rel=1e-4), "as nnU-Net's own evaluation says"
        assert of["real"]["count"] == 1 and of["synthetic"]["count"] == PAIRS
    outer = next(iter(found["fidelity"].values()))["synthetic"]
    assert outer["least"] <= outer["lower_quartile"] <= outer["median"] <= outer["upper_quartile"] <= outer["largest"]
    channels = {"photographs": ["R", "G", "B"], "regions": ["R", "G", "B"], "volumes": ["MRI"], "slices": ["CT", "T2"]}[name]
    assert list(found["intensities"]) == channels
    # the intensities are those of the files
    read = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in sorted((prepared.raw / "imagesTr").glob("*_0000.*"))
        if "tr_000" not in path.name
    ]
    labels = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in sorted((prepared.raw / "labelsTr").iterdir())
        if "tr_000" not in path.name
    ]
    assert all((mask == 2).sum() <= 1000 for mask in labels), "all voxels of the class are taken"
    inner = [(one[..., 0] if one.ndim > mask.ndim else one)[mask == 2] for one, mask in zip(read, labels, strict=True)]
    values, of_inner = np.concatenate(inner).astype(float), found["intensities"][channels[0]]["inner"]["real"]
    assert of_inner["mean"] == pytest.approx(values.mean(), rel=1e-4)
    assert of_inner["deviation"] == pytest.approx(values.std(), rel=1e-4)
    assert of_inner["count"] == len(values)
    assert found["distribution"]["kid"]["synthetic"]["count"] == found["distribution"]["fid"]["real"]["count"] == 10
    assert found["diversity"]["new_masks"] == found["diversity"]["distinct_masks"] == PAIRS
    assert found["memorisation"].keys() == {"features", "pixels"}
    assert all(of["nearest_source"]["count"] == PAIRS for of in found["memorisation"].values())
    assert any("Prefer KID" in remark for remark in found["remarks"])
    assert not any("trained on such pairs" in remark for remark in found["remarks"])
    said = prepared.quality.said
    assert f"{PAIRS} pairs, 4 training cases and 1 validation cases" in said and "KID" in said and "Prefer KID" in said
    assert prepared.quality(prepared.pairs) == found, "equal inputs give equal figures"


@pytest.mark.parametrize("name", ["photographs", "volumes"])
def test_what_is_wrong_with_pairs_shows_in_the_figures(name, prepare):
    prepared = prepare(name, steps=150)
    good = prepared.quality(prepared.pairs)
    outer = good["fidelity"]["outer"]
    assert outer["synthetic"]["mean"] > 0.3, "the network has learned"
    # masks that do not fit their images
    shifted = prepared.copy("shifted")
    for path in (shifted / "labelsTr").iterdir():
        change(path, lambda labels: np.roll(labels, 6, axis=-1))
    found = prepared.quality(shifted)
    assert found["fidelity"]["outer"]["synthetic"]["mean"] < 0.7 * outer["synthetic"]["mean"]
    assert found["fidelity"]["outer"]["real"] == outer["real"], "real cases stay as they are"
    # other intensities
    channel, offset = ("R", 30) if name == "photographs" else ("MRI", 0.3)
    bright = prepared.copy("bright")
    for path in (bright / "imagesTr").iterdir():
        change(path, lambda image: np.clip(image.astype(float) + offset, 0, 255))
    found = prepared.quality(bright)
    before, after = (content["intensities"][channel]["background"] for content in (good, found))
    assert after["synthetic"]["mean"] == pytest.approx(before["synthetic"]["mean"] + offset, rel=0.05)
    assert after["wasserstein_synthetic"]["mean"] > before["wasserstein_synthetic"]["mean"] + offset / 2
    assert after["real"] == before["real"] and after["wasserstein_real"] == before["wasserstein_real"]
    # copies: of a case that is not the source, and of the source
    copied, sources = prepared.copy("copied"), prepared.sources
    first, second = list(sources)[:2]
    other = next(case for case in sorted(set(sources.values())) if case != sources[first])
    for pair, case in ((first, other), (second, sources[second])):
        for path in (copied / "imagesTr").glob(f"{pair}_*"):
            shutil.copy(prepared.raw / "imagesTr" / path.name.replace(pair, case), path)
    found = prepared.quality(copied)
    for space, of in found["memorisation"].items():
        nearest = of["closest_other"][0]
        assert (nearest["pair"], nearest["case"]) == (first, other), space
        assert nearest["distance"] < 1e-4 < good["memorisation"][space]["nearest_other"]["least"]
        nearest = of["closest_source"][0]
        assert (nearest["pair"], nearest["case"]) == (second, sources[second])
        assert nearest["distance"] < 1e-4
        # some may have been closer before, and the two cases that are closest to each other have copies that are as close
        closest, least = {one["pair"]: one["distance"] for one in of["closest_other"]}, of["real_nearest_other"]["least"]
        assert len(closest) == PAIRS and closest[second] > 0.999 * least, "its own source does not count"
        closer = sum(distance < least for pair, distance in closest.items() if pair != second)
        assert 1 <= closer <= of["closer_than_real"] <= closer + 1
    # all the same
    same = prepared.copy("same")
    for part in ("imagesTr", "labelsTr"):
        for path in (same / part).iterdir():
            original = path.name.replace(path.name[:15], "synthetic_00000")
            if original != path.name:
                shutil.copy(same / part / original, path)
    found = prepared.quality(same, "-n", "6")
    assert found["pairs"] == 6
    assert found["diversity"]["synthetic"]["mean"] < 1e-3 < good["diversity"]["synthetic"]["mean"]
    assert found["diversity"]["distinct_masks"] == 1


def test_features_of_ones_own_take_the_place_of_the_networks(prepare, capsys, monkeypatch):
    prepared = prepare("photographs", steps=1)
    folder = prepared.pairs.parent
    corner = "def corner(images):\n    return images[:, :, :16, :16].flatten(2).mean(dim=2)\n"
    (folder / "own_features.py").write_text(corner + "\ndef one(images):\n    return images.mean()\n")
    monkeypatch.chdir(folder)
    found = prepared.quality(prepared.pairs, "--features", "own_features:corner")
    assert found["features"] == "own_features:corner" and found["distribution"]["channels"] == 3
    turned = prepared.copy("turned")
    for path in (turned / "imagesTr").iterdir():
        change(path, lambda image: image[::-1, ::-1])
    other = prepared.quality(turned, "--features", "own_features:corner")
    assert found["distribution"]["kid"]["real"] == other["distribution"]["kid"]["real"]
    distances = [content["memorisation"]["features"]["nearest_source"]["mean"] for content in (found, other)]
    assert distances[0] < distances[1]
    assert prepared.quality(prepared.pairs)["features"] == "encoder of the network"
    with pytest.raises(SystemExit):
        prepared.quality(prepared.pairs, "--features", "own_features:one")
    assert "gave a result of shape () for" in capsys.readouterr().err


def test_without_torchmetrics_fid_is_left_out_and_it_is_said(prepare, monkeypatch):
    prepared = prepare("photographs", steps=1)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    (prepared.results / "genseg_config.json").write_text("{}")
    found = prepared.quality(prepared.pairs)
    assert found["distribution"]["fid"] is None
    assert found["distribution"]["kid"]["real"]["mean"] is not None
    assert "pip install nnunetv2-genseg[quality]" in prepared.quality.said
    assert "This network was trained on such pairs" in prepared.quality.said


def test_with_all_cases_in_training_no_real_case_has_a_dice(prepare, monkeypatch):
    prepared = prepare("photographs", steps=1)
    shutil.copytree(prepared.results, prepared.results.with_name("fold_all"))
    pairs = prepared.pairs.with_name("of_all")
    cli.main(["generate", "910", "2d", "all", "-n", "3", "-o", str(pairs), "-device", "cpu"])
    found = prepared.quality(pairs, fold="all")
    assert (found["pairs"], found["training_cases"], found["validation_cases"]) == (3, 5, 0)
    assert found["fidelity"]["outer"]["real"]["mean"] is None and found["fidelity"]["outer"]["synthetic"]["count"] == 3
    assert "no validation cases" in found["remarks"][0]
    assert "Fewer than 4 training cases have a pair" in found["remarks"][1]
    assert found["distribution"]["kid"]["real"]["mean"] is None, "there are no halves"
    # a network of another kind
    build = FoldNetwork.__init__

    def without_encoder(self: FoldNetwork, settings: Any) -> None:
        build(self, settings)
        del self._network.encoder

    monkeypatch.setattr(FoldNetwork, "__init__", without_encoder)
    monkeypatch.setattr(FoldNetwork, "segmented", lambda self, data, properties: np.zeros((1, 32, 32), np.uint8))
    found = prepared.quality(pairs, fold="all")
    assert found["distribution"] is None and found["memorisation"].keys() == {"pixels"}
    assert "figures on its features are left out" in prepared.quality.said


def test_what_is_wrong_is_one_message_and_nothing_is_written(prepare, capsys):
    prepared = prepare("photographs", steps=1)
    preprocessed = prepared.pairs.parent / "nnUNet_preprocessed" / prepared.raw.name

    def refused(where: Path = prepared.pairs, *options: str, fold: str = "0") -> str:
        with pytest.raises(SystemExit) as ended:
            prepared.quality(where, *options, fold=fold)
        assert ended.value.code == 2
        message = capsys.readouterr().err.split("genseg: ")[-1]
        assert "Traceback" not in message
        assert not (where / "quality.json").exists()
        return message

    assert "-n must be 1 or more, found 0" in refused(prepared.pairs, "-n", "0")
    assert "provenance.json is missing; name a folder that `genseg generate` wrote" in refused(prepared.raw)
    assert "no trained network of fold 0 with trainer nnUNetTrainer, plans other" in refused(prepared.pairs, "-p", "other")
    shutil.copytree(prepared.results, prepared.results.with_name("fold_1"))
    assert "were made from fold 0, not from 1" in refused(fold="1")
    # pairs that are damaged
    record = json.loads((prepared.pairs / "provenance.json").read_text())

    def recorded(**changed: Any) -> Path:
        shutil.rmtree(prepared.pairs.with_name("damaged"), ignore_errors=True)
        damaged = prepared.copy("damaged")
        (damaged / "provenance.json").write_text(json.dumps(record | changed))
        return damaged

    assert "dataset Dataset777_Other, not from Dataset910" in refused(
        recorded(origin=record["origin"] | {"dataset": "Dataset777_Other"})
    )
    assert "is not a record of `genseg generate` of this version" in refused(recorded(format=0))
    assert "holds no complete pair" in refused(recorded(pairs={}))
    assert "`pairs` in" in refused(recorded(pairs=[1]))
    assert "`cases` of `pairs.a` in" in refused(recorded(pairs={"a": {}}))
    for cases in ([], ["tr_777"]):
        pairs = {"a": record["pairs"]["synthetic_00000"] | {"cases": cases}}
        assert "`cases` of `pairs.a` in" in refused(recorded(pairs=pairs))
    damaged = recorded()
    (damaged / "labelsTr" / "synthetic_00003.png").unlink()
    assert "lacks files of its pairs (labelsTr/synthetic_00003.png)" in refused(damaged)
    damaged = recorded()
    change(damaged / "labelsTr" / "synthetic_00003.png", lambda labels: labels * 0 + 7)
    assert "in the mask of the raw case synthetic_00003: the label map holds [7]" in refused(damaged)
    # another split, no network
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    splits[0]["train"][0] = splits[0]["val"][0]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    assert "were made from other training cases than those of fold 0" in refused()
    (preprocessed / "splits_final.json").unlink()
    assert "splits_final.json, which says what cases fold 0 has, is missing" in refused()
    checkpoint = prepared.results / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "checkpoint_final.pth cannot be loaded" in refused()
    plans = json.loads((prepared.results.parent / "plans.json").read_text())
    plans["configurations"]["2d"]["previous_stage"] = "2d"
    (prepared.results.parent / "plans.json").write_text(json.dumps(plans))
    assert "needs the segmentation of a previous stage" in refused()
    checkpoint.unlink()
    assert "no trained network of fold 0" in refused()
