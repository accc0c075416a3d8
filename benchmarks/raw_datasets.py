"""Raw datasets of the benchmarks: the first N training cases by rank, and the parts that a training is judged on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK
from skimage.io import imread, imsave
from skimage.transform import resize

from cells import COARSE, MINI, MONTGOMERY, SMALL, Cell

SIDES = {MINI: 64, SMALL: 128}
"""Longer side of 2D images by scale, pixels; at the other scales they are as they are."""
SUFFIXES = {"validation": "Tr", "test": "Ts", MONTGOMERY: "Ts_montgomery"}
"""Of the folders of images and labels, by part."""
GROUPS = "groups.json"
"""Beside the images and labels of a part: the group of each case, where there are groups."""
VALIDATION_RANKS = range(40, 100)
"""Cases of the training pool that no budget up to 40 uses: settings are chosen by them."""


def ranked_cases(dataset: Path) -> list[str]:
    """The training cases by rank."""
    with open(dataset / "cases.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "Tr"]
    return [row["case"] for row in sorted(rows, key=lambda row: int(row["rank"]))]


def groups_of(dataset: Path, cases: list[str]) -> dict[str, str]:
    """What belongs together, such as the pictures of one sequence, by case; empty where `cases.csv` names no groups."""
    with open(dataset / "cases.csv", newline="") as file:
        return {row["case"]: row["group"] for row in csv.DictReader(file) if row.get("group") and row["case"] in cases}


def source_of(number: str, raw: Path) -> Path:
    """The folder of a dataset by its number."""
    return next(raw.glob(f"Dataset{number}_*"))


def budgeted_dataset(source: Path, budget: int, scale: str, into: Path) -> None:
    """Makes a raw dataset of the first N training cases by rank, of the same name, in the folder `into`."""
    target = into / source.name
    shutil.rmtree(target, ignore_errors=True)
    description = json.loads((source / "dataset.json").read_text())
    chosen = ranked_cases(source)[:budget]
    copy_cases(source, "Tr", chosen, target / "imagesTr", target / "labelsTr", scale)
    (target / "dataset.json").write_text(json.dumps(description | {"numTraining": len(chosen)}))


def unlabelled_images(source: Path, cell: Cell, into: Path) -> Path:
    """Folder of the images that a cell is given without labels, in `into`, made if it is not there.

    Args:
        source: the dataset.
        cell: whose arm says where they come from.
        into: where the folder is made.

    Raises:
        ValueError: the dataset has no such images.
    """
    validated = "validation" in cell.parts
    target = into / (f"unlabelled_{cell.unlabelled}" + "_but_validation" * validated)
    if target.is_dir():
        return target
    if cell.unlabelled == MONTGOMERY:
        folder, (cases, _) = f"images{SUFFIXES[MONTGOMERY]}", halves(source)
    else:
        left_out = {*range(cell.budget), *(VALIDATION_RANKS if validated else ())}
        folder, cases = "imagesTr", [case for rank, case in enumerate(ranked_cases(source)) if rank not in left_out]
    if not cases:
        raise ValueError(f"{source.name} has no images of {cell.unlabelled} without labels")
    unfinished = target.with_name(f"{target.name}_unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    ending = file_ending(source)
    for case in cases:
        for path in images_of_case(source / folder, case, ending):
            copy_image(path, unfinished, cell.scale, order=1)
    unfinished.rename(target)
    return target


def file_ending(source: Path) -> str:
    """Of the files of a dataset."""
    return str(json.loads((source / "dataset.json").read_text())["file_ending"])


def images_of_case(folder: Path, case: str, ending: str) -> list[Path]:
    """The files of all channels of a case."""
    return sorted(folder.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"))


def labelled_cases(source: Path, part: str) -> list[str]:
    """The cases of a part, by name."""
    ending = file_ending(source)
    return sorted(path.name.removesuffix(ending) for path in (source / f"labels{SUFFIXES[part]}").glob(f"*{ending}"))


def halves(source: Path) -> tuple[list[str], list[str]]:
    """The cases of the other hospital: those that are given without labels, and those that are then judged."""
    cases = labelled_cases(source, MONTGOMERY)
    return cases[::2], cases[1::2]


def part_of(cell: Cell, part: str, raw: Path, into: Path) -> tuple[Path, Path]:
    """Folders of the images and labels of `validation`, `test` or `montgomery`, made out of `raw` if they are not there.

    Without the cases whose images the cell is given without labels.
    """
    halved = part == MONTGOMERY and cell.unlabelled == MONTGOMERY
    name = f"{part}_half" if halved else part
    made = next(into.glob(f"Dataset{cell.dataset}_*/{name}/labels"), None)
    if made is not None:
        return made.with_name("images"), made
    source = source_of(cell.dataset, raw)
    images, labels = into / source.name / name / "images", into / source.name / name / "labels"
    if part == "validation":
        ranked = ranked_cases(source)
        cases = [ranked[rank] for rank in VALIDATION_RANKS]
    else:
        cases = halves(source)[1] if halved else labelled_cases(source, part)
    labels.parent.mkdir(parents=True, exist_ok=True)
    (labels.parent / GROUPS).write_text(json.dumps(groups_of(source, cases)))
    copy_cases(source, SUFFIXES[part], cases, images, labels, cell.scale)
    return images, labels


def copy_cases(source: Path, suffix: str, cases: list[str], images: Path, labels: Path, scale: str) -> None:
    """Copies cases of one part of a dataset, resampled as the scale asks; `labels` appears last and whole."""
    ending = file_ending(source)
    unfinished = labels.with_name(f"{labels.name}_unfinished")
    for folder in (images, unfinished):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for case in cases:
        for path in images_of_case(source / f"images{suffix}", case, ending):
            copy_image(path, images, scale, order=1)
        copy_image(source / f"labels{suffix}" / f"{case}{ending}", unfinished, scale, order=0)
    unfinished.rename(labels)


def copy_image(path: Path, folder: Path, scale: str, order: int) -> None:
    """Copies an image, resampled as the scale asks: order 1 for images, smoothed before, 0 for labels."""
    if scale in SIDES and path.suffix == ".png":
        copy_smaller(path, folder, SIDES[scale], order)
    elif scale == COARSE and path.suffix != ".png":
        copy_coarser(path, folder, order)
    else:
        shutil.copy(path, folder)


def copy_smaller(path: Path, folder: Path, side: int, order: int) -> None:
    """Copies a PNG whose longer side then has `side` pixels."""
    image = imread(path)
    height, width = image.shape[:2]
    factor = side / max(height, width)
    shape = (max(1, round(height * factor)), max(1, round(width * factor)), *image.shape[2:])
    small = resize(image, shape, order=order, anti_aliasing=order > 0, preserve_range=True)
    imsave(folder / path.name, np.rint(small).astype(image.dtype), check_contrast=False)


def copy_coarser(path: Path, folder: Path, order: int) -> None:
    """Copies every second voxel along each axis of a volume, so that image and label stay in place."""
    volume = SimpleITK.ReadImage(str(path))
    if order > 0:
        volume = SimpleITK.SmoothingRecursiveGaussian(volume, volume.GetSpacing())
    SimpleITK.WriteImage(volume[::2, ::2, ::2], str(folder / path.name), useCompression=True)
