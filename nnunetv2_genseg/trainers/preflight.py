"""Checks what nnU-Net is about to read, so that a fault in it gives a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from nnunetv2_genseg.checkpoint import UNREADABLE
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import in_form, read_json

PREPROCESS = "nnUNetv2_plan_and_preprocess -d DATASET --verify_dataset_integrity"
OUTSIDE = -1
"""What nnU-Net's preprocessing writes into a segmentation where the image is empty; its augmentation makes it background."""


class Fold(BaseModel):
    """A fold in splits_final.json."""

    train: list[str]
    val: list[str]


def require_description(description: Any) -> None:
    """Checks that dataset.json holds what nnU-Net needs.

    Raises:
        GenSegError: it does not.
    """
    in_form(description, dict[str, Any], "a mapping", "dataset.json")
    for key, form, described in (
        ("labels", dict[str, int | list[int]], "a mapping of names to labels or lists of labels"),
        ("channel_names", dict[str, str], "a mapping of numbers to names"),
    ):
        present = "modality" if key == "channel_names" and "modality" in description else key
        if present not in description:
            found = ", ".join(description) or "nothing"
            raise GenSegError(f"dataset.json has no `{key}`, found {found}; add it and run {PREPROCESS}")
        in_form(description[present], form, described, f"`{present}` in dataset.json")


def read_splits(path: Path) -> list[Fold]:
    """The folds in splits_final.json.

    Raises:
        GenSegError: the file has another form.
    """
    splits: list[Fold] = read_json(path, list[Fold], 'a list with a mapping {"train": [cases], "val": [cases]} a fold')
    return splits


def require_splits(path: Path, cases: Collection[str]) -> None:
    """Checks that a user's splits_final.json is one that nnU-Net can follow.

    Args:
        path: the file.
        cases: names of all preprocessed cases.

    Raises:
        GenSegError: it is not.
    """
    unknown = sorted({case for fold in read_splits(path) for case in fold.train + fold.val} - set(cases))
    if unknown:
        names = ", ".join(unknown[:5])
        raise GenSegError(f"{path} names cases that are not preprocessed: {names}; correct it, or run {PREPROCESS}")


def require_previous_stage(dataset: Any, configuration: str, trainer: str) -> None:
    """Checks that the first stage of a cascade has segmented all cases of the second one, as they are preprocessed now.

    Args:
        dataset: nnU-Net's, of all cases of the fold, with the folder of the first stage's segmentations. The cases themselves can
            be read.
        configuration: of the first stage.
        trainer: its name.

    Raises:
        GenSegError: it has not, or a segmentation cannot be read or has another shape than its case.
    """
    folder, cases = Path(dataset.folder_with_segs_from_previous_stage), dataset.identifiers
    remedy = (
        f"first train configuration {configuration} with -tr {trainer} to its end, every fold or `all`; the final validation, "
        "which --val repeats, writes them"
    )
    if not folder.is_dir():
        raise GenSegError(f"{folder}, the previous stage's segmentations, is missing; {remedy}")
    missing = sorted(set(cases) - {path.stem for path in folder.iterdir()})
    if missing:
        raise GenSegError(
            f"{folder} lacks the segmentations of {len(missing)} of {len(cases)} cases ({first_of(missing)}); {remedy}"
        )
    for case in cases:
        try:
            _, segmentation, previous, _ = dataset.load_case(case)
            found, expected = previous[:].shape, segmentation.shape[1:]
            fault = "" if found == expected else f"has shape {found}, but the case {expected}"
        except UNREADABLE as error:
            fault = f"cannot be read ({error})"
        if fault:
            raise GenSegError(
                f"the previous stage's segmentation of case {case} in {folder} {fault}; repeat the final validation of "
                f"configuration {configuration} with -tr {trainer}, which writes it (--val)"
            )


def require_labels(dataset: Any, cases: Sequence[str], labels: Any) -> bool:
    """Opens every case once: whether its files can be read and hold declared labels only.

    Args:
        dataset: one of nnU-Net's datasets of preprocessed cases.
        cases: names of cases in it.
        labels: nnU-Net's LabelManager.

    Returns:
        Whether any of the cases holds a voxel of a foreground class.

    Raises:
        GenSegError: a case cannot be read, or holds a label that dataset.json does not declare.
    """
    ignored = {int(labels.ignore_label)} if labels.has_ignore_label else set()
    declared = {int(label) for label in labels.all_labels} | ignored
    shown = False
    for case in cases:
        try:
            _, segmentation, _, properties = dataset.load_case(case)
            undeclared = _undeclared(segmentation[:], declared | {OUTSIDE})
            locations = properties["class_locations"].items()
            shown = shown or any(len(voxels) > 0 for key, voxels in locations if not _is_annotated_key(key))
        except UNREADABLE as error:
            raise GenSegError(f"preprocessed case {case} cannot be read ({error}); run {PREPROCESS}") from error
        if undeclared:
            raise GenSegError(
                f"case {case} holds labels that dataset.json does not declare: {', '.join(map(str, undeclared))}; declared are "
                f"{', '.join(map(str, sorted(declared)))}. Correct labelsTr or dataset.json and run {PREPROCESS}"
            )
    return shown


def shown_classes(dataset: Any, cases: Sequence[str], classes: dict[str, Any]) -> dict[str, set[str]]:
    """Names of the classes of which each case holds a voxel.

    Args:
        dataset: one of nnU-Net's datasets of preprocessed cases.
        cases: names of cases in it.
        classes: labels or regions as nnU-Net's preprocessing lists them, by name.

    Raises:
        GenSegError: a case cannot be read.
    """
    shown = {}
    for case in cases:
        try:
            locations = dataset.load_case(case)[3]["class_locations"]
            shown[case] = {name for name, key in classes.items() if len(locations.get(key, ())) > 0}
        except UNREADABLE as error:
            raise GenSegError(f"preprocessed case {case} cannot be read ({error}); run {PREPROCESS}") from error
    return shown


def _undeclared(segmentation: Any, declared: set[int]) -> list[int]:
    values = np.asarray(segmentation)
    if all(value in declared for value in range(int(values.min()), int(values.max()) + 1)):
        return []  # the usual case, without sorting a whole volume
    return sorted({int(value) for value in np.unique(values)} - declared)


def _is_annotated_key(key: Any) -> bool:
    """With an ignore label nnU-Net lists all annotated voxels, background too, under a tuple with a negative label."""
    return isinstance(key, tuple) and any(int(label) <= 0 for label in key)


def first_of(names: Sequence[str]) -> str:
    """Three names at most, for a message."""
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def require_cases(folder: Path, cases: Collection[str]) -> None:
    """Checks that a fold can be made of the preprocessed cases.

    Args:
        folder: of the preprocessed dataset.
        cases: names of all preprocessed cases.

    Raises:
        GenSegError: the user's splits_final.json cannot be followed, or there are too few cases for nnU-Net's own split.
    """
    splits = folder / "splits_final.json"
    if splits.is_file():
        require_splits(splits, cases)
    elif len(cases) < 5:
        raise GenSegError(
            f"the dataset has {len(cases)} cases, too few for nnU-Net's five-fold cross-validation; train on all of them with "
            "fold `all`, or write your own splits_final.json"
        )


def require_foreground(dataset: Any, labels: Any) -> None:
    """Checks every training case (see `require_labels`) and that there is something to segment.

    Raises:
        GenSegError: a case is faulty, or no case holds a voxel of a foreground class.
    """
    if not require_labels(dataset, dataset.identifiers, labels):
        raise GenSegError("no training case of this fold holds a voxel of a foreground class; check labelsTr and dataset.json")


def warn_of_seen(validation: Collection[str], seen: Collection[str], generator: str | None, log: Callable[[str], None]) -> None:
    """Logs a warning if a trained generator has seen validation cases.

    Args:
        validation: names of the fold's validation cases.
        seen: names of the cases that the generator was trained on.
        generator: its folder.
        log: writes a line into nnU-Net's log.
    """
    both = sorted(set(validation).intersection(seen))
    if both:
        log(
            f"GenSeg WARNING: the generator in {generator} was trained on {len(both)} of the {len(validation)} validation cases "
            f"of this fold ({first_of(both)}), so validation cannot judge it; train one for this fold: genseg pretrain -f FOLD"
        )
