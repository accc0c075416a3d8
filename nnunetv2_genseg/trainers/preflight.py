"""Looks at what nnU-Net is about to read, so that a fault in it is said in words instead of by a traceback."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

PREPROCESS = "nnUNetv2_plan_and_preprocess -d DATASET --verify_dataset_integrity"


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore or correct it") from None


def require_description(description: dict[str, Any]) -> None:
    """Whether dataset.json holds what nnU-Net needs.

    Raises:
        ValueError: it does not.
    """
    for key in ("labels", "channel_names"):
        if key not in description and not (key == "channel_names" and "modality" in description):
            found = ", ".join(description) or "nothing"
            raise ValueError(f"dataset.json has no `{key}`, found {found}; add it and run {PREPROCESS}")


def require_splits(path: Path, cases: Collection[str]) -> None:
    """Whether a user's splits_final.json is one that nnU-Net can follow.

    Args:
        path: the file.
        cases: names of all preprocessed cases.

    Raises:
        ValueError: it is not.
    """
    splits = read_json(path)
    keys = {"train", "val"}
    if not isinstance(splits, list) or not all(isinstance(fold, dict) and keys <= fold.keys() for fold in splits):
        raise ValueError(f'{path} must be a list with a mapping {{"train": [cases], "val": [cases]}} a fold; correct it')
    unknown = sorted({str(case) for fold in splits for key in keys for case in fold[key]} - set(cases))
    if unknown:
        names = ", ".join(unknown[:5])
        raise ValueError(f"{path} names cases that are not preprocessed: {names}; correct it, or run {PREPROCESS}")


def require_previous_stage(folder: Path, cases: Collection[str], configuration: str, trainer: str) -> None:
    """Whether the first stage of a cascade has segmented what the second one trains on.

    Args:
        folder: of the first stage's segmentations.
        cases: names of the training cases.
        configuration: of the first stage.
        trainer: its name.

    Raises:
        ValueError: it has not.
    """
    remedy = f"first train configuration {configuration} with -tr {trainer} to its end, every fold or `all`"
    if not folder.is_dir():
        raise ValueError(f"{folder}, the previous stage's segmentations, is missing; {remedy}")
    missing = sorted(set(cases) - {path.stem for path in folder.iterdir()})
    if missing:
        raise ValueError(
            f"{folder} lacks the segmentations of {len(missing)} of {len(cases)} training cases ({first_of(missing)}); {remedy}"
        )


def first_of(names: Sequence[str]) -> str:
    """Three names at most, for a message."""
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
