"""Raw images without labels as cases of nnU-Net's: preprocessed by its own preprocessor, background all over."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from tqdm import tqdm

NAMED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})(?P<ending>\.\w[\w.]*)")
"""How nnU-Net names an image."""


class JoinedDataset:
    """Several of nnU-Net's datasets as one.

    Args:
        parts: datasets, whose cases may have the same names.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self._places = {f"{i}/{case}": (part, case) for i, part in enumerate(parts) for case in part.identifiers}
        self.identifiers = list(self._places)

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
        ValueError: a folder holds no images, or one of them is unreadable or of other channels than the dataset's.
    """
    readers = (plans.image_reader_writer_class, *LIST_OF_IO_CLASSES)
    cases = {f"{i}_{name}": files for i, folder in enumerate(folders) for name, files in _cases(folder, readers).items()}
    preprocessor = type("UnlabelledPreprocessor", (_Unlabelled, configuration.preprocessor_class), {})(verbose=False)
    for name, files in tqdm(cases.items(), desc="preprocessing", disable=None, leave=False):
        preprocessor.run_case_save(str(target / name), files, None, plans, configuration, description)


def _cases(folder: Path, readers: Sequence[Any]) -> dict[str, list[str]]:
    """Files of every case, by its name."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that holds images")
    cases = defaultdict(list)
    for path in sorted(folder.iterdir()):
        name = NAMED.fullmatch(path.name)
        if name and _reader(name["ending"], readers) is not None:
            cases[name["case"]].append(str(path))
    if not cases:
        raise ValueError(
            f"{folder} holds no images in nnU-Net's naming, CASE_0000.EXT with a number a channel, in a format that nnU-Net reads"
        )
    return cases


def _reader(ending: str, readers: Sequence[Any]) -> Any:
    """The first of nnU-Net's readers for a file ending; None if there is none."""
    return next((kind for kind in readers if ending.lower() in kind.supported_file_endings), None)


class _Unlabelled:
    """Put before nnU-Net's preprocessor: reads every format that nnU-Net does, and takes all of an image for background.

    The background is written as a segmentation, so that nnU-Net's loader finds whatever it looks up of labelled cases.
    """

    run_case_npy: Any

    def run_case(
        self, image_files: list[str], seg_file: None, plans_manager: Any, configuration_manager: Any, dataset_json: dict[str, Any]
    ) -> Any:
        """As nnU-Net's.

        Raises:
            ValueError: the image is unreadable, or does not have the dataset's channels or dimensions.
        """
        image, properties = _read(image_files, plans_manager.image_reader_writer_class)
        channels = dataset_json["modality" if "modality" in dataset_json else "channel_names"]
        if len(image) != len(channels):
            raise ValueError(
                f"case {_described(image_files)} has {len(image)} channel{'s' * (len(image) > 1)}, but the dataset has "
                f"{len(channels)} ({', '.join(channels.values())}); use images with the same channels"
            )
        if len(configuration_manager.patch_size) == 3 and image.shape[1] == 1:
            raise ValueError(f"case {_described(image_files)} is a single slice, but the configuration is 3D; use volumes")
        background = np.zeros((1, *image.shape[1:]), np.float32)
        return self.run_case_npy(image, background, properties, plans_manager, configuration_manager, dataset_json)


def _read(files: list[str], preferred: Any) -> tuple[Any, dict[str, Any]]:
    """(C, slices, height, width) and nnU-Net's properties of an image."""
    names = [NAMED.fullmatch(Path(file).name) for file in files]
    numbers, endings = [name["channel"] for name in names if name], {name["ending"] for name in names if name}
    if numbers != [f"{i:04d}" for i in range(len(files))] or len(endings) > 1:
        raise ValueError(
            f"case {_described(files)} has the files {', '.join(Path(file).name for file in files)}; number its channels from "
            "0000 on, in one format"
        )
    try:
        image, properties = _reader(endings.pop(), (preferred, *LIST_OF_IO_CLASSES))().read_images(files)
    except Exception as error:  # whatever the formats' libraries raise
        raise ValueError(f"case {_described(files)} cannot be read ({error}); restore or remove it") from error
    return image, dict(properties)


def _described(files: list[str]) -> str:
    first = Path(files[0])
    return f"{first.name.rsplit('_', 1)[0]} in {first.parent}"
