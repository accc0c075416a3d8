"""What a user can get wrong, and what `genseg` answers, as one table."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from nnunetv2_genseg import cli
from nnunetv2_genseg.checkpoint import FORMAT
from nnunetv2_genseg.generators.pretrained import FORMAT as FORMAT_OF_GENERATOR
from tests.written_pairs import write_pairs

TRAIN = ("train", "{id}", "2d", "0", "-tr", "GenSegTrainerShort", "-p", "nnUNetPlansTiny", "-device", "cpu")
RESUME = (*TRAIN, "--c")
PREVIEW = ("preview", "{id}", "2d", "-p", "nnUNetPlansTiny", "-o", "{folder}/preview")
PRETRAIN = ("pretrain", "{id}", "2d", "{folder}/generator", "-p", "nnUNetPlansTiny", "--iterations", "2", "-device", "cpu")
GENERATE = ("generate", "{id}", "2d", "0", "-n", "2", "-o", "{folder}/pairs", "-p", "nnUNetPlansTiny", "-device", "cpu")
QUALITY = ("quality", "{id}", "2d", "0", "{folder}/pairs", "-p", "nnUNetPlansTiny", "-device", "cpu")
REPORT = ("report", "{id}", "2d", "0", "-o", "{folder}/report.html", "-p", "nnUNetPlansTiny", "-device", "cpu")
OF_TRAINED = (*REPORT, "-tr", "GenSegTrainerShort")
REVIEW = ("review", "{folder}/pairs")
SWEEP = ("sweep", "{folder}/plan.yaml")
WITH_IMAGES = (*PRETRAIN, "--images", "{folder}/images")


@dataclass
class Place:
    """Folders of nnU-Net for one bad input alone, and the environment in which `genseg` is called."""

    folder: Path
    dataset: str
    environment: dict[str, str] = field(default_factory=dict)
    listener: socket.socket | None = None

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / self.dataset

    @property
    def cases(self) -> Path:
        return self.preprocessed / "nnUNetPlans_2d"

    @property
    def fold(self) -> Path:
        return self.folder / "nnUNet_results" / self.dataset / "GenSegTrainerShort__nnUNetPlansTiny__2d" / "fold_0"

    @property
    def dataset_id(self) -> str:
        return self.dataset[len("Dataset") :].split("_")[0]


Preparation = Callable[[Place], None]


@dataclass(frozen=True)
class BadInput:
    """One row of the table."""

    name: str
    message: str
    """Part of what must be said."""
    prepare: Preparation
    arguments: tuple[str, ...] = TRAIN
    """`{id}` and `{folder}` are filled in."""
    without_gpu: bool = False
    """It is wrong only where there is none."""
    begins: bool = False
    """It can be noticed only after the training has begun, whose first files are there by then."""


@dataclass(frozen=True)
class Answer:
    """What `genseg` did."""

    status: int | str | None
    said: str
    """On stderr."""
    changed: list[str]
    """Files written or changed, but for nnU-Net's log."""


def nothing(place: Place) -> None:
    """The fault is in the arguments."""


def settings(content: Any, name: str = "genseg.json") -> Preparation:
    """A settings file: its text, or the content of its JSON."""

    def prepare(place: Place) -> None:
        path = place.folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        place.environment["nnUNet_genseg_config"] = str(path)

    return prepare


def variable(name: str, value: str | None) -> Preparation:
    """An environment variable, `{folder}` filled in; None: not set."""

    def prepare(place: Place) -> None:
        place.environment.pop(name, None)
        if value is not None:
            place.environment[name] = value.format(folder=place.folder)

    return prepare


def edit(path: str, change: Callable[[Any], Any]) -> Preparation:
    """Changes a JSON file of the preprocessed dataset."""

    def prepare(place: Place) -> None:
        file = place.preprocessed / path
        content = json.loads(file.read_text()) if file.exists() else None
        file.write_text(json.dumps(change(content)))

    return prepare


def damage(change: Callable[[Path], object], path: Callable[[Place], Path]) -> Preparation:
    """Does something to a file."""
    return lambda place: (change(path(place)), None)[1]


def preprocessed(name: str) -> Callable[[Place], Path]:
    return lambda place: place.preprocessed / name


def case(name: str) -> Callable[[Place], Path]:
    return lambda place: place.cases / name


def in_fold(name: str) -> Callable[[Place], Path]:
    return lambda place: place.fold / name


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(b"{ this is neither JSON nor a pickle")


def pretrained(**differing: Any) -> Preparation:
    """Names the folder of a trained generator that fits the planned dataset except for `differing`, and holds no weights."""
    own = {
        "format": FORMAT_OF_GENERATOR,
        "weights": "weights_0",
        "family": "gan",
        "channels": ["R", "G", "B"],
        "normalization": ["ZScoreNormalization"] * 3,
        "masked": [False] * 3,
        "foreground": 2,
        "tissues": 6,
        "spacing": [1.0, 1.0],
        "features": [4, 4, 4],
        "strides": [[1, 1], [2, 2], [2, 2]],
        "kernels": [[3, 3]] * 3,
        "trained_on": {},
    }

    def prepare(place: Place) -> None:
        folder = place.folder / "pretrained"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(own | differing))
        settings({"generator": {"pretrained": str(folder)}})(place)

    return prepare


def images(**files: Any) -> Preparation:
    """A folder of PNG files, each given by a mode of PIL or as bytes."""

    def prepare(place: Place) -> None:
        folder = place.folder / "images"
        folder.mkdir()
        for name, content in files.items():
            path = folder / f"{name}.png"
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).convert(content).save(path)

    return prepare


def review(text: str | bytes | None, origin: Any = None, recorded: bool = True) -> Preparation:
    """A folder of two pairs whose files are empty, synthetic_00000 and synthetic_00001, with a review.csv that the settings name.

    Args:
        text: of review.csv; None: there is none.
        origin: what differs in the origin of the pairs.
        recorded: whether there is a provenance.json.
    """

    def prepare(place: Place) -> None:
        pairs = place.folder / "pairs"
        own = {"dataset": place.dataset, "fold": "0", "cases": CASES[1:]} | (origin or {})
        names = [f"synthetic_{k:05d}" for k in range(2)]
        for name in names:
            for file in (f"imagesTr/{name}_0000.png", f"labelsTr/{name}.png"):
                (pairs / file).parent.mkdir(parents=True, exist_ok=True)
                (pairs / file).write_bytes(b"")
        of_pair = {"cases": own["cases"][:1], "source": "deformation", "new_mask": True, "files": {}}
        written = dict.fromkeys(names, of_pair)
        if recorded:
            (pairs / "provenance.json").write_text(json.dumps({"format": 1, "origin": own, "pairs": written}))
        if text is not None:
            (pairs / "review.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        all_training(place, CASES[1:])
        settings({"review": {"file": str(pairs / "review.csv")}})(place)

    return prepare


def strangers_pairs(place: Place) -> None:
    (place.folder / "pairs").mkdir()
    (place.folder / "pairs" / "thesis.txt").write_text("precious")


def written_pairs(change: Callable[[Place, Path], object] = lambda place, pairs: None) -> Preparation:
    """A folder of pairs, changed."""

    def prepare(place: Place) -> None:
        pairs = write_pairs(place.folder, place.folder / "nnUNet_raw", ["synthetic_00000"])
        change(place, pairs)

    return prepare


def sweep(text: bytes | None = None, **changed: Any) -> Preparation:
    """A plan: the one training of the planned dataset with `changed` keys, or any text."""
    plan = {
        "configurations": ["2d"],
        "folds": [0],
        "trainers": ["GenSegTrainerShort"],
        "plans": "nnUNetPlansTiny",
        "device": "cpu",
    }

    def prepare(place: Place) -> None:
        content = {"datasets": [int(place.dataset_id)]} | plan | changed
        (place.folder / "plan.yaml").write_bytes(json.dumps(content).encode() if text is None else text)

    return prepare


def other_settings(place: Place) -> None:
    """Results of an earlier sweep with settings of the same name."""
    sweep(settings={"a": ["seed=2"]})(place)
    path = Path(place.environment["nnUNet_results"]) / "a" / "genseg_settings.json"
    path.parent.mkdir(parents=True)
    path.write_text('["seed=1"]')


def database(*statements: str) -> Preparation:
    """A folder of pairs with an SQLite database in the place of that of decisions."""

    def write(place: Place, pairs: Path) -> None:
        base = sqlite3.connect(pairs / "review.sqlite")
        for statement in statements:
            base.execute(statement)
        base.commit()
        base.close()

    return written_pairs(write)


def renamed(place: Place, pairs: Path) -> None:
    record = json.loads((pairs / "provenance.json").read_text())
    record["pairs"] = {"../synthetic_00000": record["pairs"]["synthetic_00000"]}
    (pairs / "provenance.json").write_text(json.dumps(record))


def listen(place: Place, pairs: Path) -> None:
    """Takes the port that the row names, if nobody has it, as long as the place is there."""
    place.listener = socket.socket()
    place.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with contextlib.suppress(OSError):
        place.listener.bind(("127.0.0.1", PORT))
        place.listener.listen()


def strangers_model(place: Place) -> None:
    folder = place.folder / "generator"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"precious")


def all_training(place: Place, names: list[str]) -> None:
    (place.preprocessed / "splits_final.json").write_text(json.dumps([{"train": names, "val": ["tr_000"]}]))


def few_cases(place: Place) -> None:
    (place.preprocessed / "splits_final.json").unlink(missing_ok=True)
    for path in place.cases.glob("tr_004*"):
        path.unlink()


def no_foreground(place: Place) -> None:
    for path in place.cases.glob("*.pkl"):
        properties = pickle.loads(path.read_bytes())
        properties["class_locations"] = {key: [] for key in properties["class_locations"]}
        path.write_bytes(pickle.dumps(properties))


def undeclared_label(place: Place) -> None:
    import blosc2

    for path in place.cases.glob("*_seg.b2nd"):
        labels = blosc2.open(urlpath=str(path), mode="r")[:]
        path.unlink()
        blosc2.asarray(labels * 0 + 7, urlpath=str(path))


def without(key: str) -> Callable[[Any], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


def with_labels(labels: dict[str, int]) -> Callable[[Any], Any]:
    return lambda content: content | {"labels": labels}


def cascade(plans: Any) -> Any:
    plans["configurations"]["2d"]["previous_stage"] = "2d"
    return plans


def first_stage(*cases: str) -> Preparation:
    """Files of a cascade's first stage, empty, for some cases."""

    def prepare(place: Place) -> None:
        edit("nnUNetPlansTiny.json", cascade)(place)
        folder = place.fold.parent / "predicted_next_stage" / "2d"
        folder.mkdir(parents=True)
        for name in cases:
            (folder / f"{name}.b2nd").touch()

    return prepare


def foreign(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["identity"]["dataset"] = "Dataset777_Other"
    torch.save(content, path)


def of_an_older_version(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["format"] = FORMAT - 1
    torch.save(content, path)


def both(*preparations: Preparation) -> Preparation:
    def prepare(place: Place) -> None:
        for preparation in preparations:
            preparation(place)

    return prepare


PORT = 48731
SIBLING = in_fold("checkpoint_latest.genseg-0004.pt")
CASES = [f"tr_{i:03d}" for i in range(5)]
DECISION = "pair,reviewer,decision,rating,reasons,time\nsynthetic_00000,anna,accept,5,,\n"

TABLE: tuple[BadInput, ...] = (
    # the configuration file
    BadInput("config file missing", "not a file; correct or unset it", variable("nnUNet_genseg_config", "{folder}/none.json")),
    BadInput("config file is a folder", "not a file; correct or unset it", variable("nnUNet_genseg_config", "{folder}")),
    BadInput("config not JSON", "neither valid JSON nor YAML", settings(b"{masks: ")),
    BadInput("config not YAML", "neither valid JSON nor YAML", settings(b"masks: [1,", "genseg.yaml")),
    BadInput("config not text", "is not a text file in UTF-8", settings(b"\xff\xfe\x00masks", "genseg.yaml")),
    BadInput("config is a list", "must hold a mapping of sections to settings, found list", settings([1])),
    BadInput("config section unknown", "mask: unknown key; did you mean masks?", settings({"mask": {}})),
    BadInput("config key unknown", "mixing.shares: unknown key; did you mean share", settings({"mixing": {"shares": 0.5}})),
    BadInput("config key like none", "mixing.foo: unknown key; known here: share, sources", settings({"mixing": {"foo": 1}})),
    BadInput("config of an older version", "conditioning: unknown key", settings({"conditioning": {"mode": "differential"}})),
    BadInput("config section no mapping", "masks: Input should be", settings({"masks": 3})),
    BadInput("config text for number", "mixing.share: Input should be a valid number", settings({"mixing": {"share": "1"}})),
    BadInput("config number for switch", "feedback.enabled: Input should be", settings({"feedback": {"enabled": 1}})),
    BadInput("config fraction for count", "generator.interval: Input should be", settings({"generator": {"interval": 1.5}})),
    BadInput("config nothing for number", "deformation.rotation: Input", settings({"deformation": {"rotation": None}})),
    BadInput("config NaN", "deformation.rotation: Input should be", settings(b'{"deformation": {"rotation": NaN}}')),
    BadInput("schedule out of range", "schedule.warmup: Input should be less than 1", settings({"schedule": {"warmup": 1.5}})),
    BadInput("mixing out of range", "mixing.share: Input should be greater than 0", settings({"mixing": {"share": 0}})),
    BadInput("no source", "at least one above 0", settings({"mixing": {"sources": {"redraw": 0}}})),
    BadInput("source negative", "must be 0 or more", settings({"mixing": {"sources": {"redraw": -1, "deformation": 1}}})),
    BadInput("deformation out of range", "deformation.scaling: Input should be less", settings({"deformation": {"scaling": 1}})),
    BadInput("intensity out of range", "intensity.tone: Input should be less", settings({"intensity": {"tone": 9}})),
    BadInput("redraw out of range", "redraw.tissue_classes: Input should be", settings({"redraw": {"tissue_classes": 1}})),
    BadInput("generator out of range", "generator.width: Input should be greater than 0", settings({"generator": {"width": 0}})),
    BadInput("feedback out of range", "feedback.cases: Value error, a fraction must be", settings({"feedback": {"cases": 0.9}})),
    BadInput("seed out of range", "seed: Input should be greater than or equal to 0", settings({"seed": -1})),
    BadInput("mode unknown", "redraw.mode: no 'magic'; registered are", settings({"redraw": {"mode": "magic"}})),
    BadInput("source unknown", "mixing.sources: no 'magic'; registered are", settings({"mixing": {"sources": {"magic": 1}}})),
    BadInput("mask source unknown", "masks.source: no 'magic'; registered are", settings({"masks": {"source": "magic"}})),
    BadInput("two faults at once", "deformation.rotation: Input", settings({"seed": -1, "deformation": {"rotation": 999.0}})),
    BadInput(
        "schedule leaves nothing",
        "make the sum smaller than 1",
        settings({"schedule": {"warmup": 0.5, "ramp": 0.3, "tail": 0.2}}),
    ),
    BadInput(
        "feedback without a generator",
        "mixing.sources",
        settings({"mixing": {"sources": {"deformation": 1}}}),
    ),
    BadInput("nothing that the generator shows", "intensity.shift", settings({"intensity": {"shift": 0}})),
    BadInput(
        "new shapes that nothing can show",
        "no source in mixing.sources can draw an image for a new shape",
        settings({"masks": {"source": "shape_vae"}, "mixing": {"sources": {"deformation": 1}}}),
    ),
    BadInput("held-out cases twice", "name at least one case, and each once", settings({"feedback": {"cases": ["a", "a"]}})),
    BadInput(
        "held-out cases that rotate",
        "feedback.rotations draws cases, but feedback.cases names them",
        settings({"feedback": {"cases": ["tr_001"], "rotations": 2}}),
    ),
    BadInput(
        "held-out cases of another fold",
        "no training case of this fold is named tr_000; did you mean tr_00",
        both(lambda place: all_training(place, CASES[1:]), settings({"feedback": {"cases": ["tr_000"]}})),
    ),
    BadInput(
        "too many held-out cases",
        "names 3 of the fold's 4 training cases, so that 1 remain",
        both(lambda place: all_training(place, CASES[1:]), settings({"feedback": {"cases": CASES[1:4]}})),
    ),
    BadInput(
        "no architecture in the mixture",
        "generator 'gmm' has no such parameters",
        settings({"generator": {"name": "gmm"}, "redraw": {"mode": "tissue"}}),
    ),
    BadInput(
        "mixture without tissues",
        "needs the intensities of tissue classes; set redraw.mode to 'tissue' or 'residual'",
        settings({"generator": {"name": "gmm"}, "redraw": {"mode": "mask"}, "feedback": {"parameters": "policy"}}),
    ),
    BadInput("--set without value", "--set needs SECTION.SETTING=VALUE", nothing, (*TRAIN, "--set", "seed")),
    BadInput("--set unknown", "rotaton: unknown key; did you mean rotation", nothing, (*TRAIN, "--set", "deformation.rotaton=1")),
    BadInput("--set twice", "seed is set already", nothing, (*TRAIN, "--set", "seed=1", "--set", "seed=2")),
    BadInput("--set no YAML", "the value is not valid YAML", nothing, (*TRAIN, "--set", "mixing.sources=[a")),
    BadInput("generator unknown", "generator.name: no 'stylegan'; registered are", settings({"generator": {"name": "stylegan"}})),
    # the command line
    BadInput("no command", "the following arguments are required: command", nothing, ()),
    BadInput("command unknown", "invalid choice: 'trian'", nothing, ("trian",)),
    BadInput("env with arguments", "genseg env takes no arguments, found --now", nothing, ("env", "--now")),
    BadInput("generators with arguments", "genseg generators takes no arguments", nothing, ("generators", "gan")),
    BadInput("dataset missing", "the following arguments are required: dataset_name_or_id", nothing, ("train",)),
    BadInput("fold missing", "the following arguments are required: fold", nothing, ("train", "{id}", "2d")),
    BadInput(
        "dataset no number", "dataset_name_or_id must either be", nothing, ("train", "hippocampus", "2d", "0", "-device", "cpu")
    ),
    BadInput("dataset not there", "999", nothing, ("train", "999", "2d", "0", "-device", "cpu")),
    BadInput(
        "trainer unknown",
        "GenSegTrainerTypo",
        nothing,
        ("train", "{id}", "2d", "0", "-tr", "GenSegTrainerTypo", "-device", "cpu"),
    ),
    BadInput(
        "fold no number",
        "fold must be `all` or a whole number from 0 on, found 'first'",
        nothing,
        (*TRAIN[:3], "first", *TRAIN[4:]),
    ),
    BadInput(
        "fold negative", "fold must be `all` or a whole number from 0 on, found '-1'", nothing, (*TRAIN[:3], "-1", *TRAIN[4:])
    ),
    BadInput(
        "configuration unknown",
        "Requested configuration 4d not found in plans. Available configurations: ['2d']",
        nothing,
        (*TRAIN[:2], "4d", *TRAIN[3:]),
    ),
    BadInput("plans unknown", "nnUNetv2_plan_and_preprocess", nothing, (*TRAIN[:7], "nnUNetOtherPlans", *TRAIN[8:])),
    BadInput("device unknown", "-device must be either cpu, mps or cuda", nothing, (*TRAIN[:-1], "tpu")),
    BadInput("no GPU", "no CUDA device was found; use -device cpu", nothing, TRAIN[:-2], without_gpu=True),
    BadInput("GPUs of other machines", "-num_gpus 99, but this machine has", nothing, (*TRAIN, "-num_gpus", "99")),
    BadInput("option unknown", "unrecognized arguments: --fast", nothing, (*TRAIN, "--fast")),
    BadInput("resume and validate", "Cannot set --c and --val flag at the same time", nothing, (*TRAIN, "--c", "--val")),
    BadInput("validate before training", "the training is not finished yet", nothing, (*TRAIN, "--val")),
    BadInput("length wrong", "five whole numbers", variable("nnUNet_genseg_short", "1,2")),
    BadInput("preprocessed folder not set", "nnUNet_preprocessed is not set", variable("nnUNet_preprocessed", None)),
    BadInput("results folder not set", "nnUNet_results is not set", variable("nnUNet_results", None)),
    BadInput(
        "preprocessed folder not there",
        "999",
        variable("nnUNet_preprocessed", "{folder}/none"),
        ("train", "999", "2d", "0", "-device", "cpu"),
    ),
    BadInput("results folder is a file", "Not a directory", variable("nnUNet_results", "{folder}/nnUNet_preprocessed/file")),
    # the data
    BadInput("four cases", "4 cases, too few for nnU-Net's five-fold cross-validation", few_cases),
    BadInput("two training cases", "2 training cases, but feedback", lambda place: all_training(place, ["tr_001", "tr_002"])),
    BadInput("no foreground", "no training case of this fold holds a voxel of a foreground class", no_foreground),
    BadInput(
        "label that is not declared",
        "case tr_001 holds labels that dataset.json does not declare: 7; declared are 0, 1, 2. Correct",
        undeclared_label,
    ),
    BadInput("dataset.json without labels", "dataset.json has no `labels`", edit("dataset.json", without("labels"))),
    BadInput(
        "dataset.json without channels", "dataset.json has no `channel_names`", edit("dataset.json", without("channel_names"))
    ),
    BadInput("only background", "declares no foreground label", edit("dataset.json", with_labels({"background": 0}))),
    BadInput(
        "labels with a gap",
        "must be consecutive from 1 on, found [1, 3]",
        edit("dataset.json", with_labels({"background": 0, "a": 1, "b": 3})),
    ),
    BadInput("dataset.json missing", "dataset.json is missing; first run", damage(Path.unlink, preprocessed("dataset.json"))),
    BadInput("dataset.json corrupt", "dataset.json is not valid JSON", damage(garbage, preprocessed("dataset.json"))),
    BadInput("plans corrupt", "nnUNetPlansTiny.json is not valid JSON", damage(truncate, preprocessed("nnUNetPlansTiny.json"))),
    BadInput(
        "cascade without its first stage",
        "is missing; first train configuration 2d with -tr GenSegTrainerShort",
        edit("nnUNetPlansTiny.json", cascade),
    ),
    BadInput(
        "cascade whose first stage lacks cases", "lacks the segmentations of 4 of 5 cases (tr_001, tr_002,", first_stage("tr_000")
    ),
    BadInput(
        "cascade with a damaged segmentation",
        "the previous stage's segmentation of case tr_000 in ",
        first_stage("tr_000", "tr_001", "tr_002", "tr_003", "tr_004"),
    ),
    BadInput(
        "fingerprint missing",
        "dataset_fingerprint.json is missing; first run",
        damage(Path.unlink, preprocessed("dataset_fingerprint.json")),
        begins=True,
    ),
    BadInput("splits corrupt", "splits_final.json is not valid JSON", damage(garbage, preprocessed("splits_final.json"))),
    BadInput("splits no list", "splits_final.json must be a list", edit("splits_final.json", lambda _: {"train": [], "val": []})),
    BadInput(
        "splits without val", "splits_final.json must be a list", edit("splits_final.json", lambda _: [{"train": ["tr_001"]}])
    ),
    BadInput(
        "splits of other cases",
        "splits_final.json names cases that are not preprocessed: other",
        edit("splits_final.json", lambda _: [{"train": ["tr_001", "other"], "val": ["tr_000"]}]),
    ),
    BadInput(
        "splits of numbers",
        "0.train.0: Input should be a valid string; found 3",
        edit("splits_final.json", lambda _: [{"train": [3], "val": []}]),
    ),
    BadInput("preprocessed files missing", "nnUNetv2_plan_and_preprocess", lambda place: shutil.rmtree(place.cases)),
    BadInput("preprocessed images missing", "nnUNetv2_plan_and_preprocess", damage(Path.unlink, case("tr_001.b2nd"))),
    BadInput("preprocessed image corrupt", "tr_001", damage(garbage, case("tr_001.b2nd"))),
    BadInput("preprocessed properties corrupt", "tr_001", damage(garbage, case("tr_001.pkl"))),
    # continuing
    BadInput("continued with other settings", "mixing.share: 0.5 there, 0.2 now", settings({"mixing": {"share": 0.2}}), RESUME),
    BadInput(
        "continued without its settings", "was not trained by GenSeg", damage(Path.unlink, in_fold("genseg_config.json")), RESUME
    ),
    BadInput(
        "recorded settings corrupt",
        "genseg_config.json is not valid JSON",
        damage(truncate, in_fold("genseg_config.json")),
        RESUME,
    ),
    BadInput(
        "recorded settings of another form",
        "genseg_config.json must be a mapping of settings",
        damage(lambda path: path.write_text("[1]"), in_fold("genseg_config.json")),
        RESUME,
    ),
    BadInput("continued with another --set", "seed: 0 there, 7 now", nothing, (*RESUME, "--set", "seed=7")),
    BadInput("generator state missing", "checkpoint_latest.genseg-0004.pt is missing", damage(Path.unlink, SIBLING), RESUME),
    BadInput("generator state truncated", "checkpoint_latest.genseg-0004.pt is corrupt", damage(truncate, SIBLING), RESUME),
    BadInput(
        "generator state of an older version",
        f"has format {FORMAT - 1}, this version reads {FORMAT}",
        damage(of_an_older_version, SIBLING),
        RESUME,
    ),
    BadInput("generator state of another dataset", "dataset is 'Dataset777_Other' there", damage(foreign, SIBLING), RESUME),
    BadInput(
        "checkpoint truncated", "checkpoint_latest.pth is corrupt", damage(truncate, in_fold("checkpoint_latest.pth")), RESUME
    ),
    BadInput("checkpoint garbage", "checkpoint_latest.pth is corrupt", damage(garbage, in_fold("checkpoint_latest.pth")), RESUME),
    # a generator trained before
    BadInput("unlabelled folder missing", "/none is not a folder", settings({"unlabelled": {"images": ["/none"]}})),
    BadInput("unlabelled no list", "unlabelled.images: Input should be", settings({"unlabelled": {"images": "/none"}})),
    BadInput("unlabelled never sure", "unlabelled.confidence: Input should be", settings({"unlabelled": {"confidence": 1.0}})),
    # decisions of reviewers
    BadInput("review.file no path", "review.file: Input should be a valid string", settings({"review": {"file": 3}})),
    BadInput(
        "review.file mistyped", "review.file: /none/review.csv is not a file", settings({"review": {"file": "/none/review.csv"}})
    ),
    BadInput("review.file without pairs", "provenance.json is missing", review(DECISION, recorded=False)),
    BadInput("review.file not there", "review.csv is not a file; name the review.csv of a folder of pairs", review(None)),
    BadInput("review.file of another fold", "were made from fold 1, not from 0", review(DECISION, {"fold": "1"})),
    BadInput("review.file of another dataset", "were made from dataset Other, not", review(DECISION, {"dataset": "Other"})),
    BadInput("review.file of other cases", "other training cases than those of fold 0", review(DECISION, {"cases": CASES[2:]})),
    BadInput("review.file in another encoding", "review.csv is not a text file in UTF-8", review(DECISION.encode("utf-16"))),
    BadInput("review.file with semicolons", "lacks the columns pair, reviewer, decision", review(DECISION.replace(",", ";"))),
    BadInput("review.file without decisions", "review.csv holds no decision", review(DECISION.replace("accept", ""))),
    BadInput("review.file of unknown pairs", "no pair is named 'synthetic_7'", review(DECISION.replace("_00000", "_7"))),
    BadInput(
        "review.file with another decision", "decision must be accept, reject or empty", review(DECISION.replace("accept", "yes"))
    ),
    BadInput(
        "review.file with two decisions",
        "'anna' has decided on synthetic_00000 before",
        review(DECISION + DECISION.splitlines()[1]),
    ),
    BadInput("review.file with short lines", "line 3: 1 values for 6 columns", review(DECISION + "synthetic_00001\n")),
    BadInput("review.file of damaged pairs", "the raw case synthetic_00000 cannot be read", review(DECISION)),
    # a trained generator
    BadInput("pretrained folder missing", "is not the folder of a trained", settings({"generator": {"pretrained": "/none"}})),
    BadInput("pretrained no path", "generator.pretrained: Input should be", settings({"generator": {"pretrained": 3}})),
    BadInput("pretrained on cases of another form", "`trained_on` in", pretrained(trained_on={"Dataset901_Phantom2D": 3})),
    BadInput("pretrained weights elsewhere", "must be one of weights_0, weights_1", pretrained(weights="../../weights")),
    BadInput("pretrained on other channels", "channels is ['T1'] there, ['R', 'G', 'B'] here", pretrained(channels=["T1"])),
    BadInput("pretrained otherwise normalised", "masked is [True, True, True] there", pretrained(masked=[True] * 3)),
    BadInput("pretrained at no spacing", "spacing is [None, None] there, [1.0, 1.0] here", pretrained(spacing=[None, None])),
    BadInput("pretrained at other spacing", "spacing is [1.0, 2.0] there, [1.0, 1.0] here", pretrained(spacing=[1.0, 2.0])),
    BadInput("pretrained in 3D", "spacing is [1.0, 1.0, 1.0] there", pretrained(spacing=[1.0, 1.0, 1.0])),
    BadInput("pretrained of another family", "family is 'vae' there, 'gan' here", pretrained(family="vae")),
    BadInput("pretrained of another width", "features is [8, 8, 8] there, [4, 4, 4] here", pretrained(features=[8, 8, 8])),
    BadInput(
        "pretrained by an older version",
        f"has format 1, this version reads {FORMAT_OF_GENERATOR}; train it again",
        pretrained(format=1),
    ),
    BadInput("pretrained weights missing", "are missing, damaged or of other shapes", pretrained()),
    BadInput(
        "pretrained of a family without weights",
        "generator 'gmm' has no weights to save or load; choose another generator.name",
        settings(
            {
                "generator": {"name": "gmm", "pretrained": "/none"},
                "redraw": {"mode": "tissue"},
                "feedback": {"parameters": "policy"},
            }
        ),
    ),
    BadInput(
        "pretrained without a generator",
        "mixing.sources has no `redraw`, so there is no generator to train or load",
        settings(
            {
                "generator": {"pretrained": "/none"},
                "mixing": {"sources": {"deformation": 1}},
                "feedback": {"parameters": "policy"},
            }
        ),
    ),
    # training a generator
    BadInput("pretrain without output", "arguments are required: OUTPUT_FOLDER", nothing, ("pretrain", "{id}", "2d")),
    BadInput("pretrain nothing", "--iterations must be 1 or more, found 0", nothing, (*PRETRAIN, "--iterations", "0")),
    BadInput("pretrain a fold of no number", "fold must be `all` or a whole number", nothing, (*PRETRAIN, "-f", "first")),
    BadInput("pretrain on an unknown device", "invalid choice: 'tpu'", nothing, (*PRETRAIN, "-device", "tpu")),
    BadInput("pretrain without GPU", "use -device cpu", nothing, (*PRETRAIN, "-device", "cuda"), without_gpu=True),
    BadInput("pretrain a dataset that is not there", "999", nothing, ("pretrain", "999", *PRETRAIN[2:])),
    BadInput("pretrain in an unknown configuration", "configuration 4d not found", nothing, (*PRETRAIN[:2], "4d", *PRETRAIN[3:])),
    BadInput("pretrain with plans that are not there", "Other.json is missing; first run", nothing, (*PRETRAIN, "-p", "Other")),
    BadInput("pretrain with stock nnU-Net", "nnUNetTrainer has no generator", nothing, (*PRETRAIN, "-tr", "nnUNetTrainer")),
    BadInput("pretrain with an unknown trainer", "GenSegTrainerTypo", nothing, (*PRETRAIN, "-tr", "GenSegTrainerTypo")),
    BadInput("pretrain a mixture", "generator 'gmm' has no weights", nothing, (*PRETRAIN, "-tr", "GenSegTrainerGMM")),
    BadInput(
        "pretrain nothing that draws",
        "mixing.sources has no `redraw`, so there is no generator to train or load",
        settings({"mixing": {"sources": {"deformation": 1}}, "feedback": {"enabled": False}}),
        PRETRAIN,
    ),
    BadInput(
        "pretrain into a file",
        "file is no folder or not writable; name another",
        nothing,
        (*PRETRAIN[:3], "{folder}/nnUNet_preprocessed/file", *PRETRAIN[4:]),
    ),
    BadInput(
        "pretrain into another program's model",
        "holds files that `genseg pretrain` did not write (config.json, model.safetensors); name a new folder",
        strangers_model,
        PRETRAIN,
    ),
    BadInput("pretrain without the data", "nnUNet_preprocessed is not set", variable("nnUNet_preprocessed", None), PRETRAIN),
    BadInput("pretrain on a corrupt image", "case tr_001 cannot be read", damage(garbage, case("tr_001.b2nd")), PRETRAIN),
    BadInput("pretrain from what does not fit", "spacing is [2.0] there", pretrained(spacing=[2.0]), PRETRAIN),
    BadInput("images not there", "images is not a folder; name one that holds images", nothing, WITH_IMAGES),
    BadInput("images without any", "images holds no images in nnU-Net's naming", images(scan="RGB"), WITH_IMAGES),
    BadInput("images misnamed", "holds scan.png, not in nnU-Net's naming", images(a_0000="RGB", scan="RGB"), WITH_IMAGES),
    BadInput("images of other channels, by name", "case b in", images(a_0000="RGB", b_0000="L"), WITH_IMAGES),
    BadInput("images of other channels", "has 1 channel, but the dataset has 3 (R, G, B)", images(b_0000="L"), WITH_IMAGES),
    BadInput("images numbered wrongly", "number its channels from 0000 on", images(a_0000="L", a_0002="L"), WITH_IMAGES),
    BadInput("images that are unreadable", "case a in", images(a_0000=b"no image"), WITH_IMAGES),
    BadInput(
        "images without tissue classes",
        "redraw.mode 'mask' does not have; choose 'tissue' or 'residual'",
        both(settings({"redraw": {"mode": "mask"}}), images(a_0000="RGB")),
        WITH_IMAGES,
    ),
    # a look before the training
    BadInput("preview of nothing", "--pairs must be 1 or more, found 0", nothing, (*PREVIEW, "--pairs", "0")),
    BadInput("preview a fold of no number", "fold must be `all` or a whole number", nothing, (*PREVIEW[:3], "x", *PREVIEW[3:])),
    BadInput("preview a dataset that is not there", "999", nothing, ("preview", "999", *PREVIEW[2:])),
    BadInput("preview without the data", "nnUNet_preprocessed is not set", variable("nnUNet_preprocessed", None), PREVIEW),
    BadInput("preview of stock nnU-Net", "nnUNetTrainer has no generator", nothing, (*PREVIEW, "-tr", "nnUNetTrainer")),
    BadInput(
        "preview into a file",
        "file is no folder or not writable; name another",
        nothing,
        (*PREVIEW[:5], "-o", "{folder}/nnUNet_preprocessed/file"),
    ),
    # pairs as a dataset
    BadInput("generate nothing", "-n must be 1 or more, found 0", nothing, (*GENERATE, "-n", "0")),
    BadInput("generate with a negative seed", "--seed must be 0 or more, found -1", nothing, (*GENERATE, "--seed", "-1")),
    BadInput("generate with no Dice", "--least-dice must be above 0 and at most 1", nothing, (*GENERATE, "--least-dice", "0")),
    BadInput("generate without redraws", "--redraws must be 1 or more, found 0", nothing, (*GENERATE, "--redraws", "0")),
    BadInput("generate judged by no network", "no trained network of fold 0", nothing, (*GENERATE, "--least-dice", "0.5")),
    BadInput("generate without the raw data", "lacks the raw image or mask of 4 of 4 training cases", nothing, GENERATE),
    BadInput("generate without nnUNet_raw", "nnUNet_raw is not set", variable("nnUNet_raw", None), GENERATE),
    BadInput("generate without the data", "nnUNet_preprocessed is not set", variable("nnUNet_preprocessed", None), GENERATE),
    BadInput("generate among files of others", "did not write (thesis.txt)", strangers_pairs, GENERATE),
    BadInput(
        "generate for a fold of no number", "fold must be `all` or a whole number", nothing, (*GENERATE[:3], "x", *GENERATE[4:])
    ),
    BadInput("generate by stock nnU-Net", "nnUNetTrainer has no generator", nothing, (*GENERATE, "-tr", "nnUNetTrainer")),
    BadInput("generate without GPU", "found; use -device cpu", nothing, GENERATE[:-2], without_gpu=True),
    BadInput(
        "generate into a file",
        "file is no folder or not writable; name another",
        nothing,
        (*GENERATE[:6], "-o", "{folder}/nnUNet_preprocessed/file", *GENERATE[8:]),
    ),
    BadInput("generate in no shards", "--shards must be 1 or more, found 0", nothing, (*GENERATE, "--shards", "0")),
    BadInput(
        "generate on an unknown engine",
        "engine: no 'pbs'; registered are local, ray, slurm",
        nothing,
        (*GENERATE, "--shards", "2", "--engine", "pbs"),
    ),
    BadInput(
        "generate with an option without value",
        "--slurm needs OPTION=VALUE",
        nothing,
        (*GENERATE, "--shards", "2", "--slurm", "gpu"),
    ),
    BadInput(
        "generate in shards among files of others", "did not write (thesis.txt)", strangers_pairs, (*GENERATE, "--shards", "2")
    ),
    # many trainings
    BadInput("sweep without a plan", "plan.yaml is not a file; name the plan of the sweep", nothing, SWEEP),
    BadInput("sweep by what is no YAML", "plan.yaml is not valid YAML", sweep(b"datasets: [1"), SWEEP),
    BadInput("sweep by a list", "plan.yaml must hold a mapping", sweep(b"[1]"), SWEEP),
    BadInput("sweep with an unknown key", "fold: unknown key; did you mean folds?", sweep(fold=[0]), SWEEP),
    BadInput("sweep with an unknown setting", "did you mean rotation", sweep(settings={"a": ["deformation.rotaton=1"]}), SWEEP),
    BadInput(
        "sweep with settings of one name as a dataset", "D/1 cannot be a folder", sweep(settings={"D/1": ["seed=1"]}), SWEEP
    ),
    BadInput("sweep with the same settings twice", "a and b are the same", sweep(settings={"a": [], "b": []}), SWEEP),
    BadInput("sweep on an unknown engine", "engine: no 'pbs'; registered are local, ray, slurm", sweep(engine="pbs"), SWEEP),
    BadInput("sweep of an unknown dataset", "999", sweep(datasets=[999]), SWEEP),
    BadInput("sweep of what is no dataset", "Your input: Phantom", sweep(datasets=["Phantom"]), SWEEP),
    BadInput("sweep of one dataset twice", "by number and by name", sweep(datasets=[903, "Dataset903_Phantom2D"]), SWEEP),
    BadInput("sweep of folds in no list", "folds: Value error, must be a list", sweep(folds="all"), SWEEP),
    BadInput("sweep of an unknown configuration", "configuration 4d not found in plans", sweep(configurations=["4d"]), SWEEP),
    BadInput("sweep of an unknown trainer", "GenSegTrainerTypo", sweep(trainers=["GenSegTrainerTypo"]), SWEEP),
    BadInput("sweep with plans that are not there", "Other.json is missing; first run", sweep(plans="Other"), SWEEP),
    BadInput("sweep without GPU", "found; use device: cpu", sweep(device="cuda"), SWEEP, without_gpu=True),
    BadInput("sweep without nnUNet_results", "nnUNet_results is not set", both(sweep(), variable("nnUNet_results", None)), SWEEP),
    BadInput(
        "sweep into a file",
        "Not a directory",
        both(sweep(), variable("nnUNet_results", "{folder}/nnUNet_preprocessed/file")),
        SWEEP,
    ),
    BadInput(
        "sweep over several machines",
        "nodes must be 1, found 2: nnU-Net trains on the GPUs of one machine",
        sweep(engine="slurm", slurm={"nodes": 2, "cluster": "local"}),
        SWEEP,
    ),
    BadInput(
        "sweep on SLURM where there is none",
        'Could not detect "srun"',
        both(sweep(engine="slurm"), variable("PATH", "/nowhere")),
        SWEEP,
    ),
    BadInput(
        "sweep with an option that submitit does not know",
        "slurm_partion",
        sweep(engine="slurm", slurm={"slurm_partion": "gpu", "cluster": "local"}),
        SWEEP,
    ),
    BadInput(
        "sweep on this machine with options of SLURM",
        "options of SLURM, but engine local; write engine: slurm",
        sweep(slurm={"slurm_partition": "gpu"}),
        SWEEP,
    ),
    BadInput(
        "sweep on Ray, which was not started",
        "start Ray on the first machine (ray start --head)",
        both(sweep(engine="ray"), variable("RAY_ADDRESS", "auto")),
        SWEEP,
    ),
    BadInput(
        "sweep with other settings of the same name",
        "holds results of ['seed=1'], found ['seed=2']; choose another name",
        other_settings,
        SWEEP,
    ),
    BadInput(
        "sweep of numbered folds and a comparison of `all`",
        "find_best compares numbered folds",
        sweep(folds=["all"], find_best=True),
        SWEEP,
    ),
    # figures of pairs
    BadInput("quality of nothing", "-n must be 1 or more, found 0", nothing, (*QUALITY, "-n", "0")),
    BadInput("quality by a module alone", "--features needs MODULE:FUNCTION", nothing, (*QUALITY, "--features", "math")),
    BadInput("quality by a file", "needs MODULE:FUNCTION", nothing, (*QUALITY, "--features", "./my_features.py:resnet")),
    BadInput("quality by no module", "No module named 'no_module'", nothing, (*QUALITY, "--features", "no_module:features")),
    BadInput("quality by no function", "has no attribute 'features'", nothing, (*QUALITY, "--features", "math:features")),
    BadInput("quality by a number", "is float, not a function", nothing, (*QUALITY, "--features", "math:pi")),
    BadInput("quality without a trained network", "no trained network of fold 0 with trainer GenSegTrainer", nothing, QUALITY),
    BadInput("quality without nnUNet_raw", "nnUNet_raw is not set", variable("nnUNet_raw", None), QUALITY),
    BadInput("quality without nnUNet_results", "nnUNet_results is not set", variable("nnUNet_results", None), QUALITY),
    BadInput("quality without the data", "nnUNet_preprocessed is not set", variable("nnUNet_preprocessed", None), QUALITY),
    BadInput("quality of a dataset that is not there", "999", nothing, ("quality", "999", *QUALITY[2:])),
    BadInput("quality of a fold of no number", "fold must be `all` or a whole", nothing, (*QUALITY[:3], "x", *QUALITY[4:])),
    BadInput("quality without GPU", "found; use -device cpu", nothing, QUALITY[:-2], without_gpu=True),
    BadInput(
        "quality into a file",
        "file is no folder or not writable; name another",
        nothing,
        (*QUALITY, "-o", "{folder}/nnUNet_preprocessed/file"),
    ),
    # a report
    BadInput("report of no pairs", "-n must be 1 or more, found 0", nothing, (*OF_TRAINED, "-n", "0")),
    BadInput("report without a training", "holds no checkpoint of fold 0 with trainer GenSegTrainer, plans", nothing, REPORT),
    BadInput("report of a folder without pairs", "provenance.json is missing", nothing, (*OF_TRAINED, "--pairs", "{folder}")),
    BadInput("report of pairs, twice", "not allowed with argument", nothing, (*OF_TRAINED, "--pairs", "{folder}", "-n", "2")),
    BadInput("report without the raw data", "lacks the raw image or mask of", nothing, OF_TRAINED),
    BadInput("report without nnUNet_raw", "nnUNet_raw is not set", variable("nnUNet_raw", None), REPORT),
    BadInput("report without nnUNet_results", "nnUNet_results is not set", variable("nnUNet_results", None), REPORT),
    BadInput("report of a dataset that is not there", "999", nothing, ("report", "999", *REPORT[2:])),
    BadInput("report of a fold of no number", "fold must be `all` or a whole", nothing, (*REPORT[:3], "x", *REPORT[4:])),
    BadInput("report without GPU", "found; use -device cpu", nothing, REPORT[:-2], without_gpu=True),
    BadInput("report into a folder", "is a folder; name a file", nothing, (*OF_TRAINED, "-o", "{folder}")),
    BadInput(
        "report into a file as if it were a folder",
        "file is no folder or not writable; name another",
        nothing,
        (*OF_TRAINED, "-o", "{folder}/nnUNet_preprocessed/file/report.html"),
    ),
    BadInput(
        "report of a damaged checkpoint",
        ".pth cannot be read",
        damage(lambda fold: [path.write_bytes(b"PK") for path in fold.glob("*.pth")], lambda place: place.fold),
        OF_TRAINED,
    ),
    # people's judgement
    BadInput("review of no pairs", "provenance.json is missing; name a folder that `genseg", nothing, REVIEW),
    BadInput(
        "review of an incomplete folder",
        "dataset.json is missing; restore it, or start `genseg generate` again",
        written_pairs(lambda place, pairs: (pairs / "dataset.json").unlink()),
        REVIEW,
    ),
    BadInput("review of a record with paths", "which is no name of a case", written_pairs(renamed), REVIEW),
    BadInput(
        "review with decisions of another version",
        "is no database of `genseg review` of this version",
        database("CREATE TABLE decisions (x)", "PRAGMA user_version = 99"),
        REVIEW,
    ),
    BadInput(
        "review with damaged decisions",
        "review.sqlite cannot be read",
        written_pairs(lambda place, pairs: (pairs / "review.sqlite").write_bytes(b"no database")),
        REVIEW,
    ),
    BadInput(
        "review in a folder that cannot be written",
        "review.sqlite cannot be written",
        written_pairs(lambda place, pairs: (pairs / "review.sqlite").mkdir()),
        REVIEW,
    ),
    BadInput("review at a taken port", f"port {PORT} (Address already", written_pairs(listen), (*REVIEW, "--port", f"{PORT}")),
    BadInput("review at no port", "--port must be a whole number from 0", written_pairs(), (*REVIEW, "--port", "70000")),
    BadInput("review at another machine", "cannot listen at 203.0.113.1", written_pairs(), (*REVIEW, "--host", "203.0.113.1")),
    BadInput("review exported before it began", "holds no decisions; judge pairs first", written_pairs(), (*REVIEW, "--export")),
    # the demo
    BadInput("demo device unknown", "invalid choice: 'tpu'", nothing, ("demo", "--device", "tpu")),
    BadInput("demo without GPU", "found; use --device cpu", nothing, ("demo", "--device", "cuda"), without_gpu=True),
    BadInput("demo option unknown", "unrecognized arguments: --fast", nothing, ("demo", "--fast")),
    BadInput("demo into a file", "Not a directory", nothing, ("demo", "--folder", "{folder}/nnUNet_preprocessed/file")),
    BadInput("demo where nothing can be written", "/proc/genseg", nothing, ("demo", "--folder", "/proc/genseg")),
)


def files_under(folder: Path) -> dict[str, bytes]:
    """Content of all files, but for nnU-Net's log, which it begins before anything is checked."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("training_log_"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def place_for(bad: BadInput, folder: Path, prepared: Path, dataset: str, killed: Path) -> Place:
    """Copies of a planned dataset (under `prepared`) and, to be continued or reported, of a killed training's results."""
    place = Place(folder, dataset)
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    place.environment = {name: str(folder / name) for name in names} | {
        "nnUNet_n_proc_DA": "0",
        "nnUNet_genseg_short": "6,2,1,2,5",
    }
    shutil.copytree(prepared / "nnUNet_preprocessed" / dataset, place.preprocessed)
    (folder / "nnUNet_preprocessed" / "file").write_text("a file")
    if "--c" in bad.arguments or "report" in bad.arguments[:1]:
        shutil.copytree(killed / dataset, folder / "nnUNet_results" / dataset)
    bad.prepare(place)
    return place


@contextlib.contextmanager
def _process(environment: dict[str, str]) -> Iterator[None]:
    """This process with another environment, and as it was afterwards."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    threads, arguments, on_sigterm = torch.get_num_threads(), sys.argv, signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ, mine | environment, clear=True):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            sys.argv = arguments
            signal.signal(signal.SIGTERM, on_sigterm)


def answer(bad: BadInput, place: Place) -> Answer:
    """Calls `genseg` in this process."""
    before = files_under(place.folder)
    arguments = [part.format(id=place.dataset_id, folder=place.folder) for part in bad.arguments]
    status: int | str | None = 0
    shown, said = io.StringIO(), io.StringIO()
    with _process(place.environment), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        try:
            cli.main(arguments)
        except SystemExit as error:
            status = error.code
    after = files_under(place.folder)
    return Answer(status, said.getvalue(), sorted(name for name in after if after[name] != before.get(name)))
