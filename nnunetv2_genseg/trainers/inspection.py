"""A look at every training case before the training begins."""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np

from nnunetv2_genseg.trainers import preflight
from nnunetv2_genseg.trainers.planning import label_codec

FREE_SPREAD = 0.1
"""A class is at any place if the centres of its structures, as fractions of the image's extent, have at least this standard
deviation along two axes or more. Along one axis alone paired organs differ, and all organs where scans begin at different
heights."""
FEWEST = 3
"""Fewest cases with a class for this decision."""


def inspect_cases(trainer: Any) -> None:
    """Checks all cases that a GenSeg trainer trains on, and tells its loop which classes may be pasted at another place.

    Raises:
        GenSegError: a case, or in a cascade its previous segmentation, is faulty, or no case holds a voxel of a foreground class.
    """
    of_fold, folder = trainer._held_out.of_fold, trainer.preprocessed_dataset_folder
    dataset = trainer.dataset_class(folder, of_fold["training"])
    preflight.require_foreground(dataset, trainer.label_manager)
    previous = trainer.folder_with_segs_from_previous_stage
    if previous is not None:
        cases = sorted({*of_fold["training"], *of_fold["validation"]})
        both = trainer.dataset_class(folder, cases, folder_with_segs_from_previous_stage=previous)
        preflight.require_previous_stage(both, trainer.configuration_manager.previous_stage_name, type(trainer).__name__)
    if "lesion" in trainer.genseg.paste.kinds:
        free = free_classes(dataset, trainer.label_manager)
        trainer.loop.free(free)
        found = ", ".join(map(str, free)) or "none, so nothing is pasted by `lesion`"
        trainer.print_to_log_file(f"GenSeg: classes that may be pasted at another place: {found}")


def free_classes(dataset: Any, labels: Any) -> list[int]:
    """Classes whose structures occur at any place of the images.

    Args:
        dataset: nnU-Net's dataset of preprocessed cases.
        labels: nnU-Net's LabelManager.

    Returns:
        Numbers of classes, as in `LabelCodec`'s class maps.
    """
    codec = label_codec(labels)
    centres: dict[int, list[Any]] = {index: [] for index in range(1, codec.foreground + 1)}
    for case in dataset.identifiers:
        segmentation = np.asarray(dataset.load_case(case)[1][0])
        for index, found in centres.items():
            structures = segmentation == codec.labels[index]
            if structures.any():
                found.append(_centres(structures))
    return [index for index, found in centres.items() if _are_free(found)]


def _centres(structures: Any) -> Any:
    """(structures, dims) centres of connected components, as fractions of the extent; 2D images have one slice."""
    components = cc3d.connected_components(structures.astype(np.uint8), connectivity=26)
    return cc3d.statistics(components)["centroids"][1:] / structures.shape


def _are_free(centres: list[Any]) -> bool:
    if len(centres) < FEWEST:
        return False
    return int((np.concatenate(centres).std(axis=0) >= FREE_SPREAD).sum()) >= 2
