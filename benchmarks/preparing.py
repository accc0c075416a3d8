"""Where the things of `gain.py` are, and the dataset and the images of a cell, made and planned once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from building import nnunet_folders
from cells import Cell
from nnunetv2_genseg.files.lock import alone_in
from raw_datasets import budgeted_dataset, part_of, source_of, unlabelled_images

RESULTS = Path(__file__).parent / "results" / "gain"


@dataclass(frozen=True)
class Place:
    """Where things are on this machine."""

    raw: Path
    work: Path
    device: str
    results: Path = RESULTS

    def dataset(self, cell: Cell) -> Path:
        """Folder of the raw and the preprocessed dataset of a cell, shared by its arms and seeds."""
        return self.work / cell.scale / f"{cell.dataset}_{cell.budget}"

    def model(self, cell: Cell) -> Path:
        """Folder of what the training of a cell writes."""
        return self.work / "models" / cell.training


def prepare(cell: Cell, place: Place) -> None:
    """Makes and plans the dataset of a cell, and the images that it is judged on, unless they are there.

    Another process that does so in the same place is waited for.
    """
    place.work.mkdir(parents=True, exist_ok=True)
    with alone_in(place.work, wait=True):
        for budget in {cell.planned_for or cell.budget, cell.budget}:
            make_dataset(replace(cell, budget=budget, planned_for=0), place)
        for part in cell.parts:
            part_of(cell, part, place.raw, place.work / cell.scale / "parts")
        if cell.unlabelled:
            images_of(cell, place)


def make_dataset(cell: Cell, place: Place) -> None:
    """Makes and plans the dataset of a cell, unless it is there."""
    folder = place.dataset(cell)
    done = folder / f"planned_{cell.configuration}"
    if done.exists():
        return
    budgeted_dataset(source_of(cell.dataset, place.raw), cell.budget, cell.scale, folder / "raw")
    plan_and_preprocess(folder, cell)
    done.touch()


def plan_and_preprocess(folder: Path, cell: Cell) -> None:
    """nnU-Net's own planning of the raw dataset below `folder` for a cell."""
    options = ("-d", cell.dataset, "-c", cell.configuration, "-np", "1", "-npfp", "1", "--verify_dataset_integrity")
    run_nnunet(folder, "nnUNetv2_plan_and_preprocess", *options)


def images_of(cell: Cell, place: Place) -> Path:
    """The images that a cell is given without labels; `prepare` makes them."""
    return unlabelled_images(source_of(cell.dataset, place.raw), cell, place.dataset(cell))


def run_nnunet(folder: Path, program: str, *options: str) -> None:
    """One of nnU-Net's programs on the dataset below `folder`, also where its scripts are not installed; its output is kept."""
    run = "import sys; from importlib.metadata import entry_points; sys.argv[0] = sys.argv.pop(1); "
    run += "(program,) = entry_points(group='console_scripts', name=sys.argv[0]); program.load()()"
    with open(folder / f"{program}.txt", "a") as log:
        environment = os.environ | nnunet_folders(folder, folder)
        subprocess.run([sys.executable, "-c", run, program, *options], env=environment, stdout=log, stderr=log, check=True)
