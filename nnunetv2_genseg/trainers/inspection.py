"""A look at every training case before the training begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2_genseg.trainers import preflight
from nnunetv2_genseg.trainers.planning import label_codec

FREE_SPREAD = 0.1
"""Structures of a class are at any place if the standard deviation over the cases of their centre, as a fraction of the image's
extent, is at least this much along some axis."""
FEWEST = 3
"""Cases that must show a class to tell."""


def inspect_cases(trainer: Any, dataset: Any) -> None:
    """Checks the training cases, and tells the loop which classes may be pasted at another place.

    Args:
        trainer: a GenSeg trainer.
        dataset: nnU-Net's dataset of its training cases.

    Raises:
        GenSegError: a case is faulty, or no case holds a voxel of a foreground class.
    """
    preflight.require_foreground(dataset, trainer.label_manager)
    if "lesion" in trainer.genseg.paste.kinds:
        trainer.loop.sampler.paster.context.free_classes = free_classes(dataset, trainer.label_manager)


def free_classes(dataset: Any, labels: Any) -> tuple[int, ...]:
    """Classes that occur at any place of the images, by the voxels that nnU-Net's preprocessing kept of each.

    Args:
        dataset: nnU-Net's dataset of preprocessed cases.
        labels: nnU-Net's LabelManager; with regions a class is free if all of its regions are.

    Returns:
        Numbers of classes, as in `LabelCodec`'s class maps.
    """
    regions = [_key(region) for region in (labels.foreground_regions if labels.has_regions else labels.foreground_labels)]
    centres: dict[Any, list[Any]] = {region: [] for region in regions}
    for case in dataset.identifiers:
        data, _, _, properties = dataset.load_case(case)
        for region, voxels in properties["class_locations"].items():
            if _key(region) in centres and len(voxels):
                centres[_key(region)].append(np.asarray(voxels)[:, 1:].mean(axis=0) / data.shape[1:])
    free = [_is_free(centres[region]) for region in regions]
    codec = label_codec(labels)
    if codec.regions is None:
        return tuple(index for index in range(1, codec.foreground + 1) if free[index - 1])
    members = codec.regions[:, : len(regions)].tolist()
    return tuple(i for i in range(1, codec.foreground + 1) if all(free[r] for r, member in enumerate(members[i]) if member))


def _key(region: Any) -> Any:
    return tuple(int(label) for label in region) if isinstance(region, Sequence) else int(region)


def _is_free(centres: list[Any]) -> bool:
    return len(centres) >= FEWEST and bool((np.std(centres, axis=0) >= FREE_SPREAD).any())
