"""A rival: stock nnU-Net is trained, labels the unlabelled images, and is trained again with them, each for half of the length.

After the advice of nnU-Net's maintainers (github.com/MIC-DKFZ/nnUNet/issues/2338). The predictions are made as nnU-Net makes them
by default, with test-time mirroring. The second training begins from scratch, with batch, patch and network planned for the
labelled cases alone, since nnU-Net plans larger batches for more cases.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import Cell
from nnunetv2_genseg.cli import external_trainers
from preparing import Place, images_of, plan_and_preprocess, run_nnunet
from raw_datasets import budgeted_dataset, source_of

FIRST = "stock"
"""The arm of the first training."""


def dataset_of(cell: Cell, place: Place) -> Path:
    """Folder of the raw and the preprocessed dataset of the second training."""
    return place.model(cell) / "with_predictions"


def label_images(cell: Cell, place: Place, run: Callable[[Cell, Place], Any]) -> dict[str, Any]:
    """Trains, predicts and makes the dataset of the second training; what was measured of the first, but for its cases.

    Args:
        cell: of this rival, prepared.
        place: where things are.
        run: trains and judges a cell in a process of its own; a training that is finished is not begun again.
    """
    first = replace(cell, arm=FIRST, iterations=cell.iterations // 2)
    own = replace(place, results=place.model(cell) / "first_half")
    run(first, own)
    measured: dict[str, Any] = json.loads(first.result(own.results).read_text())
    folder, source, images = dataset_of(cell, place), source_of(cell.dataset, place.raw), images_of(cell, place)
    shutil.rmtree(folder, ignore_errors=True)
    budgeted_dataset(source, cell.budget, cell.scale, folder / "raw")
    (trained,) = place.model(first).glob(f"Dataset{cell.dataset}_*/*__{cell.configuration}")
    predictions = folder / "predictions"
    os.environ["nnUNet_extTrainer"] = external_trainers()
    options = ("-i", str(images), "-o", str(predictions), "-m", str(trained), "-f", "all", "-device", place.device)
    run_nnunet(folder, "nnUNetv2_predict_from_modelfolder", *options, "-npp", "1", "-nps", "1")
    add_cases(images, predictions, folder / "raw" / source.name)
    plan_and_preprocess(folder, cell)
    parts = {name: values["dice"] for name, values in measured["parts"].items()}
    return {"dice": parts, **{key: measured[key] for key in ("iterations", "seconds", "cpu_seconds")}}


def add_cases(images: Path, labels: Path, dataset: Path) -> None:
    """Adds the images of a folder with the labels of another to the training cases of a raw dataset."""
    description = json.loads((dataset / "dataset.json").read_text())
    ending = description["file_ending"]
    for folder, into in ((images, "imagesTr"), (labels, "labelsTr")):
        for path in folder.glob(f"*{ending}"):
            shutil.copy(path, dataset / into)
    cases = len(list((dataset / "labelsTr").glob(f"*{ending}")))
    (dataset / "dataset.json").write_text(json.dumps(description | {"numTraining": cases}))
