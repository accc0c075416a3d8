"""`genseg report`: the page of a real training, in 2D and 3D."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from nnunetv2_genseg import cli
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES
from nnunetv2_genseg.plots.slices import window_of_volume
from nnunetv2_genseg.trainers.short import GenSegTrainerShort

from .conftest import make_trainer
from .datasets import Kind, plan

KINDS = {"photographs": (Kind(ignore=True), "2d"), "volumes": (Kind(dims=3, regions=True), "3d_fullres")}
EPOCHS, PAIRS = 4, 3


class Page:
    """A page as a reader has it: its text, its data, and what can be downloaded."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.data = json.loads(re.search(r'id="data">(.*?)</script>', self.text)[1])
        links = re.findall(r'download="([^"]*)" href="data:[a-z/]+;base64,([^"]*)"', self.text)
        self.files = {name: base64.b64decode(content).decode() for name, content in links}

    def table(self, name: str) -> list[list[str]]:
        return list(csv.reader(io.StringIO(self.files[name])))

    def picture(self, name: str, layer: str, k: int) -> np.ndarray:
        """Slice `k` of those that are shown."""
        found = self.data["pictures"][name]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[layer]))).convert("RGBA")).astype(float)
        return np.split(pixels, len(found["slices"]))[k]


@pytest.fixture
def train(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Callable[[dict[str, Any]], None]) -> Callable[[str], Any]:
    def call(name: str) -> tuple[Any, Callable[..., None]]:
        for variable in (OVERRIDES, EXTERNAL_TRAINERS):
            monkeypatch.setenv(variable, "")
        settings({"feedback": {"interval": 1, "start": 0.4}, "deformation": {"rotation": 20}})
        kind, configuration = KINDS[name]
        raw = kind.write(folder / "nnUNet_raw", 910)
        plan(910, configuration)
        trainer = make_trainer(GenSegTrainerShort, raw.name, configuration, f"{EPOCHS},2,1,1,0")
        trainer.run_training()
        trainer.perform_actual_validation()
        os.environ.pop("nnUNet_genseg_config")

        def genseg(command: str, *options: str) -> None:
            of_fold = ("910", configuration, "0", "-tr", "GenSegTrainerShort", "-device", "cpu")
            cli.main([command, *of_fold, *options])

        return trainer, genseg

    return call


@pytest.mark.parametrize("name", KINDS)
def test_a_training_is_reported_with_pairs_that_are_drawn_for_it(name, train, folder, capsys):
    trainer, genseg = train(name)
    genseg("report", "-o", str(folder / "new" / "report.html"), "-n", str(PAIRS))
    assert f"The report is {folder / 'new' / 'report.html'}" in capsys.readouterr().out
    page = Page(folder / "new" / "report.html")
    # what was used
    for said in ("GenSegTrainerShort", f"{EPOCHS}, until checkpoint_final.pth", "deformation 0.5, redraw 0.5", "batch of 2"):
        assert said in page.text
    assert "<td><code>deformation.rotation</code></td><td>20.0</td>" in page.text
    assert json.loads(page.files["settings.json"])["deformation"]["rotation"] == 20
    # curves
    logged, rows = trainer.logger.local_logger.my_fantastic_logging, trainer.recorder.progress.rows
    found = page.table("loss_of_the_segmentation_network.csv")
    assert found[0] == ["epoch", "training", "validation"] and len(found) == 1 + EPOCHS
    np.testing.assert_allclose([float(row[1]) for row in found[1:]], logged["train_losses"], rtol=1e-4)
    classes = ["whole", "inner"] if name == "volumes" else ["outer", "inner"]
    found = page.table("dice_of_validation_patches_each_class.csv")
    assert found[0] == ["epoch", *classes]
    np.testing.assert_allclose(np.float64(found[1:])[:, 1:], logged["dice_per_class_or_region"], rtol=1e-4)
    norms = [[f"{row['epoch']:g}", f"{row['hypergradient_norm']:.6g}"] for row in rows if "hypergradient_norm" in row]
    assert page.table("norm_of_the_hypergradient.csv")[1:] == norms
    assert page.table("generator.csv")[0][1] == "l1"
    validation = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    found = page.table("dice_of_the_validation_cases_final.csv")
    assert [row[0] for row in found[1:]] == classes
    assert float(found[1][1]) == pytest.approx(next(iter(validation["mean"].values()))["Dice"], abs=1e-3)
    named = {"volumes": ["inner"], "photographs": ["outer", "inner", "ignore"]}[name]
    legend = re.findall(r"<i style.*?</i>(.*?)</li>", page.text)
    assert legend == named, "each outline is named, regions of several labels are not"
    # pairs, in all orders
    views = {view["title"]: view["items"] for view in page.data["views"]}
    names = [f"synthetic_{k:05d}" for k in range(PAIRS)]
    assert [item["pair"] for item in views["In the order of their names"]] == names
    assert [item["pair"] for item in views["Lowest Dice first"]] == [item["pair"] for item in views["Highest Dice first"]][::-1]
    dice = [float(row[4]) for row in sorted(page.table("pairs.csv")[1:], key=lambda row: float(row[4]))]
    assert [f"Dice {value:.3f}" for value in dice] == [item["caption"].split(", ")[1] for item in views["Lowest Dice first"]]
    figures = json.loads(page.files["quality.json"])
    closest = figures["memorisation"]["features"]["closest_other"]
    shown = [(item["pair"], item["case"]) for item in views["Closest to another case (features)"]]
    assert shown == [(one["pair"], one["case"]) for one in closest]
    assert ("<p>Images are shown with" in page.text) == (name == "photographs")
    # the pictures are those of the files
    case = views["In the order of their names"][0]["case"]
    raw = folder / "nnUNet_raw" / trainer.plans_manager.dataset_name
    ending = trainer.dataset_json["file_ending"]
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / f"{case}_0000{ending}")))
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTr" / f"{case}{ending}")))
    image = image[None] if name == "volumes" else np.moveaxis(image, -1, 0)[:, None]
    picture = page.data["pictures"][f"case {case}"]
    assert picture["slices"] == list(range(image.shape[1])) and picture["of"] == image.shape[1]
    low, high = window_of_volume(image, colour=name == "photographs")[:, 0]
    k = picture["first"]
    expected = 255 * np.clip((image[0, k] - low) / (high - low), 0, 1)
    assert np.abs(page.picture(f"case {case}", "image", k)[..., 0] - expected).mean() < 16, "lossy, but that slice"
    outlined = page.picture(f"case {case}", "outline", k)[..., 3] > 0
    large = np.asarray(Image.fromarray((labels.reshape(image.shape[1:])[k] > 0).astype(np.uint8)).resize(outlined.shape[::-1], 0))
    assert outlined.any() and not outlined[large == 0].any()


def test_a_folder_of_pairs_is_reported_with_its_figures(train, folder, capsys):
    _, genseg = train("photographs")
    pairs = folder / "pairs"
    genseg("generate", "-n", str(PAIRS), "-o", str(pairs))

    def report() -> Page:
        genseg("report", "--pairs", str(pairs), "-o", str(folder / "report.html"))
        return Page(folder / "report.html")

    page = report()
    assert "These pairs were not judged." in page.text and "quality.json" not in page.files
    assert [view["title"] for view in page.data["views"]] == ["In the order of their names"]
    assert len(page.data["views"][0]["items"]) == PAIRS
    genseg("quality", str(pairs), "-n", "2")
    page = report()
    judged = json.loads((pairs / "quality.json").read_text())
    assert json.loads(page.files["quality.json"]) == judged
    assert [len(view["items"]) for view in page.data["views"][:2]] == [PAIRS, 2]
    assert "2 pairs, 4 training cases and 1 validation cases" in page.text
    # figures of another shape, and of other pairs
    capsys.readouterr()
    (folder / "report.html").unlink()
    without_pair = judged | {"dice_of_pairs": {"synthetic_00009": {"outer": 0.5}}}
    for content, said in (
        ("[1]", "quality.json must be a mapping"),
        ("{", "is not valid JSON"),
        (json.dumps({"fidelity": 3}), "is not what `genseg quality` of this version writes for these pairs (KeyError"),
        (json.dumps(judged | {"fidelity": []}), "for these pairs (AttributeError"),
        (json.dumps(judged | {"dice_of_pairs": {"synthetic_00000": 3}}), "for these pairs ("),
        (json.dumps(without_pair), "(KeyError: 'synthetic_00009'); run `genseg quality` again"),
        (json.dumps(judged).replace("tr_00", "tr_99"), "it names the case tr_99"),
    ):
        (pairs / "quality.json").write_text(content)
        with pytest.raises(SystemExit) as ended:
            report()
        assert ended.value.code == 2
        message = capsys.readouterr().err
        assert said in message and "Traceback" not in message
    assert not (folder / "report.html").exists()
