"""Raw images without labels as nnU-Net's cases: preprocessed by its own preprocessor, with background everywhere."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.files.atomic import put_in_place, write_text_atomically
from nnunetv2_genseg.files.lock import alone_in
from nnunetv2_genseg.trainers.planning import channel_names
from nnunetv2_genseg.trainers.processes import by_processes
from nnunetv2_genseg.trainers.progress_bar import ProgressBar

NAMED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})(?P<ending>\.\w[\w.]*)")
"""How nnU-Net names an image."""

STAMPS = "stamps"
"""Folder beside the preprocessed cases: what each was made of, a file a case, written when the case is complete."""
PREPROCESSING = ("preprocessor", "spacing", "normalization", "use_mask", "resampling")
"""How the keys of a configuration that preprocessing reads begin."""


def preprocess_beside(trainer: Any, folders: Sequence[Path]) -> tuple[Path, dict[str, Path]]:
    """Preprocesses images for a trainer of nnU-Net, into the folder beside its preprocessed dataset that all trainings share.

    Returns:
        The folder, and the image of each case; see `preprocess_unlabelled`.
    """
    configuration = trainer.configuration_manager
    folder = Path(trainer.preprocessed_dataset_folder_base, f"{configuration.data_identifier}_unlabelled")
    return folder, preprocess_unlabelled(folders, trainer.plans_manager, configuration, trainer.dataset_json, folder)


def preprocess_unlabelled(
    folders: Sequence[Path], plans: Any, configuration: Any, description: dict[str, Any], target: Path
) -> dict[str, Path]:
    """Preprocesses all images of some folders, but for those that are there already from the same files and plans.

    Args:
        folders: of images named CASE_0000.EXT, in any of the formats that nnU-Net reads.
        plans: nnU-Net's PlansManager of the dataset that they join.
        configuration: its ConfigurationManager.
        description: the dataset's dataset.json.
        target: receives the cases; made if it is not there. Another process that fills it is waited for.

    Returns:
        The image of each case, its first channel's file, by the name of the preprocessed case.

    Raises:
        GenSegError: a folder holds no images, or one of them is unreadable or of other channels than the dataset's.
    """
    readers = (plans.image_reader_writer_class, *LIST_OF_IO_CLASSES)
    cases = {
        # a number after the name, because nnU-Net takes `..._seg` for the segmentation of another case
        f"{name}_{_digest(str(folder.resolve()))}": files
        for folder in folders
        for name, files in _cases(folder, readers).items()
    }
    plan = _digest(json.dumps(_what_preprocessing_takes(plans, configuration, description), sort_keys=True, default=str))

    def missing() -> dict[str, str]:
        stamps = {name: json.dumps({"plan": plan, "files": [_state(file) for file in files]}) for name, files in cases.items()}
        return {name: stamp for name, stamp in stamps.items() if _text(target / STAMPS / f"{name}.json") != stamp}

    if not missing():  # so that nothing is written
        return {name: Path(files[0]) for name, files in cases.items()}
    (target / STAMPS).mkdir(parents=True, exist_ok=True)
    with alone_in(target / STAMPS, wait=True):
        stamps, beside = missing(), target / STAMPS / "new"
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        bar = ProgressBar(len(stamps), "preprocessing")

        def keep(name: str) -> None:
            (target / STAMPS / f"{name}.json").unlink(missing_ok=True)
            _move(name, beside / name, target)
            write_text_atomically(stamps[name], target / STAMPS / f"{name}.json")
            bar.step()

        try:
            by_processes(partial(_preprocess, cases, beside, plans, configuration, description), stamps, keep)
        finally:
            bar.close()
            shutil.rmtree(beside, ignore_errors=True)
    return {name: Path(files[0]) for name, files in cases.items()}


def _preprocess(
    cases: dict[str, list[str]], folder: Path, plans: Any, configuration: Any, description: dict[str, Any], name: str
) -> None:
    """Preprocesses one case into a folder of its own in `folder`."""
    preprocessor = type("UnlabelledPreprocessor", (_Unlabelled, configuration.preprocessor_class), {})(verbose=False)
    (folder / name).mkdir(parents=True)
    preprocessor.run_case_save(str(folder / name / name), cases[name], None, plans, configuration, description)


def _move(name: str, new: Path, target: Path) -> None:
    """Moves a case's files into the target in place of older ones; a training that has these open keeps them."""
    files = sorted(new.iterdir())
    for file in files:
        put_in_place(file, target / file.name)
    new.rmdir()
    older = {*target.glob(f"{escape(name)}.*"), *target.glob(f"{escape(name)}_seg.*")}  # such as unpacked arrays
    for file in older - {target / file.name for file in files}:
        file.unlink()


def _what_preprocessing_takes(plans: Any, configuration: Any, description: dict[str, Any]) -> list[Any]:
    """The part of the plans on which a preprocessed case depends: other plans may share the folder of preprocessed cases."""
    own = {key: configuration.configuration[key] for key in sorted(configuration.configuration) if key.startswith(PREPROCESSING)}
    reader, intensities = plans.plans["image_reader_writer"], plans.foreground_intensity_properties_per_channel
    return [own, plans.transpose_forward, intensities, reader, description["labels"]]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _state(file: str) -> list[Any]:
    """What changes with a file's content: its size, bytes, and when it was changed, nanoseconds; the name before them."""
    state = Path(file).stat()
    return [Path(file).name, state.st_size, state.st_mtime_ns]


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _cases(folder: Path, readers: Sequence[Any]) -> dict[str, list[str]]:
    """Files of every case, by its name; files of other formats than images may lie beside them."""
    if not folder.is_dir():
        raise GenSegError(f"{folder} is not a folder; name one that holds images")
    cases, misnamed = defaultdict(list), []
    for path in sorted(folder.iterdir()):
        name = NAMED.fullmatch(path.name)
        if name and _readers_of(name["ending"], readers):
            cases[name["case"]].append(str(path))
        elif name is None and any(path.name.lower().endswith(end) for kind in readers for end in kind.supported_file_endings):
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
        channels = channel_names(dataset_json)
        if len(image) != len(channels):
            raise GenSegError(
                f"case {_described(image_files)} has {len(image)} channel{'s' * (len(image) > 1)}, but the dataset has "
                f"{len(channels)} ({', '.join(channels)}); use images with the same channels"
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
