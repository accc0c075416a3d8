"""Raw images without labels as nnU-Net's cases: preprocessed by its own preprocessor, with background everywhere."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.progress_bar import with_progress

NAMED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})(?P<ending>\.\w[\w.]*)")
"""How nnU-Net names an image."""


class JoinedDataset:
    """Labelled and unlabelled cases as one of nnU-Net's datasets. nnU-Net's loader draws each identifier equally often.

    Labelled cases are listed several times, so that they are at least half of the identifiers: they alone show the classes,
    and the loader can oversample foreground only in cases that have it.

    Args:
        labelled: one of nnU-Net's datasets.
        unlabelled: another one, whose cases may have the same names.
    """

    def __init__(self, labelled: Any, unlabelled: Any) -> None:
        parts = {"labelled": labelled, "unlabelled": unlabelled}
        self._places = {f"{name}/{case}": (part, case) for name, part in parts.items() for case in part.identifiers}
        known, others = ([name for name in self._places if name.startswith(f"{part}/")] for part in parts)
        self.identifiers = known * max(1, math.ceil(len(others) / len(known))) + others

    def load_case(self, identifier: str) -> Any:
        """Image, segmentation, segmentation of the previous stage or None, and properties, as nnU-Net's loader takes them."""
        part, case = self._places[identifier]
        return part.load_case(case)


def preprocess_unlabelled(
    folders: Sequence[Path], plans: Any, configuration: Any, description: dict[str, Any], target: Path
) -> None:
    """Preprocesses all images of some folders.

    Args:
        folders: of images named CASE_0000.EXT, in any of the formats that nnU-Net reads.
        plans: nnU-Net's PlansManager of the dataset that they join.
        configuration: its ConfigurationManager.
        description: the dataset's dataset.json.
        target: an existing folder; receives the cases.

    Raises:
        GenSegError: a folder holds no images, or one of them is unreadable or of other channels than the dataset's.
    """
    readers = (plans.image_reader_writer_class, *LIST_OF_IO_CLASSES)
    # a number after the name, because nnU-Net takes `..._seg` for the segmentation of another case
    cases = {f"{name}_{i}": files for i, folder in enumerate(folders) for name, files in _cases(folder, readers).items()}
    preprocessor = type("UnlabelledPreprocessor", (_Unlabelled, configuration.preprocessor_class), {})(verbose=False)
    for name, files in with_progress(cases.items(), "preprocessing"):
        preprocessor.run_case_save(str(target / name), files, None, plans, configuration, description)


def _cases(folder: Path, readers: Sequence[Any]) -> dict[str, list[str]]:
    """Files of every case, by its name; files of other formats than images may lie beside them."""
    if not folder.is_dir():
        raise GenSegError(f"{folder} is not a folder; name one that holds images")
    cases, misnamed = defaultdict(list), []
    for path in sorted(folder.iterdir()):
        name = NAMED.fullmatch(path.name)
        if name and _readers_of(name["ending"], readers):
            cases[name["case"]].append(str(path))
        elif name is None and _readers_of(path.suffix, readers):
            misnamed.append(path.name)
    if cases and misnamed:
        raise GenSegError(
            f"{folder} holds {', '.join(misnamed[:3])}, not in nnU-Net's naming, CASE_0000.EXT; rename or remove what is not "
            f"({len(misnamed)} file{'s' * (len(misnamed) > 1)})"
        )
    if not cases:
        raise GenSegError(
            f"{folder} holds no images in nnU-Net's naming, CASE_0000.EXT with a number a channel, in a format that nnU-Net reads"
        )
    return cases


def _readers_of(ending: str, readers: Sequence[Any]) -> list[Any]:
    """nnU-Net's readers for files with an ending."""
    return [kind for kind in readers if ending.lower() in kind.supported_file_endings]


class _Unlabelled:
    """A mixin for nnU-Net's preprocessor: reads every format that nnU-Net reads, and takes all of an image as background.

    The background is written as a segmentation, so that nnU-Net's loader finds the same files as for labelled cases.
    """

    run_case_npy: Any

    def run_case(
        self, image_files: list[str], seg_file: None, plans_manager: Any, configuration_manager: Any, dataset_json: dict[str, Any]
    ) -> Any:
        """As nnU-Net's.

        Raises:
            GenSegError: the image is unreadable, or does not have the dataset's channels or dimensions.
        """
        image, properties = _read(image_files, plans_manager.image_reader_writer_class)
        channels = dataset_json["modality" if "modality" in dataset_json else "channel_names"]
        if len(image) != len(channels):
            raise GenSegError(
                f"case {_described(image_files)} has {len(image)} channel{'s' * (len(image) > 1)}, but the dataset has "
                f"{len(channels)} ({', '.join(channels.values())}); use images with the same channels"
            )
        slices_stay = len(configuration_manager.patch_size) == 2 and plans_manager.transpose_forward[0] == 0
        if image.shape[1] == 1 and not slices_stay:
            raise GenSegError(
                f"case {_described(image_files)} is a single slice, but the configuration needs more than the slices along the "
                "image's first axis; use volumes"
            )
        background = np.zeros((1, *image.shape[1:]), np.float32)
        return self.run_case_npy(image, background, properties, plans_manager, configuration_manager, dataset_json)


def _read(files: list[str], preferred: Any) -> tuple[Any, dict[str, Any]]:
    """(C, slices, height, width) and nnU-Net's properties of an image."""
    names = [NAMED.fullmatch(Path(file).name) for file in files]
    numbers, endings = [name["channel"] for name in names if name], {name["ending"] for name in names if name}
    if numbers != [f"{i:04d}" for i in range(len(files))] or len(endings) > 1:
        raise GenSegError(
            f"case {_described(files)} has the files {', '.join(Path(file).name for file in files)}; number its channels from "
            "0000 on, in one format"
        )
    fault: Exception | None = None
    for reader in _readers_of(endings.pop(), (preferred, *LIST_OF_IO_CLASSES)):
        try:
            image, properties = reader().read_images(files)
            return image, dict(properties)
        except Exception as error:  # whatever the formats' libraries raise
            fault = fault or error
    raise GenSegError(f"case {_described(files)} cannot be read ({fault}); restore or remove it") from fault


def _described(files: list[str]) -> str:
    first = Path(files[0])
    return f"{first.name.rsplit('_', 1)[0]} in {first.parent}"
