"""The pairs of a folder, and the real cases that they were made from, as they are shown to people."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import in_form, read_json
from nnunetv2_genseg.plots.samples import Picture
from nnunetv2_genseg.plots.slices import window_of_volume
from nnunetv2_genseg.trainers.pair_folder import PairFolder
from nnunetv2_genseg.trainers.planning import channel_names
from nnunetv2_genseg.trainers.provenance import DESCRIPTION
from nnunetv2_genseg.trainers.raw_cases import Array, case_files
from nnunetv2_genseg.trainers.raw_formats import in_colour

KEPT = 2**30
"""Bytes of cases that are kept in memory, at most; the last one read is kept in any case."""


@dataclass(frozen=True)
class ShownCase:
    """An image and its mask, as nnU-Net's reader gives them."""

    image: Array
    """(C, slices, height, width) raw intensities; photographs have one slice."""
    labels: Array
    """(slices, height, width)."""
    spacing: tuple[float, ...]
    """Of the three axes, mm."""
    colour: bool
    """Whether the channels are red, green and blue."""

    @cached_property
    def window(self) -> Picture:
        """(2, C): intensities shown as black and as white."""
        return window_of_volume(self.image, self.colour)

    @cached_property
    def fullest(self) -> int:
        """The slice with most labelled voxels; the middle one if there are none."""
        counts = (self.labels > 0).sum(axis=(1, 2))
        return int(counts.argmax()) if counts.any() else len(counts) // 2


class ShownCases:
    """Reads cases of a raw dataset.

    Args:
        folder: of the dataset.
        example: one of its cases.
        links: whether files of cases may lie elsewhere.

    Raises:
        GenSegError: the dataset has no dataset.json, or nnU-Net has no reader for it.
    """

    def __init__(self, folder: Path, example: str, links: bool) -> None:
        self.folder = folder
        self.links = links
        path = folder / DESCRIPTION
        if not path.is_file():
            raise GenSegError(f"{path} is missing; restore it, or start `genseg generate` again until all its pairs are there")
        self.description: dict[str, Any] = read_json(path, dict[str, Any], "a mapping")
        if not {"file_ending", "channel_names", "labels"} <= self.description.keys():
            raise GenSegError(f"{path} needs `file_ending`, `channel_names` and `labels`; restore it")
        self.channels = channel_names(self.description)
        file = self._files(example)[0][0]
        try:
            with redirect_stderr(StringIO()):  # which readers do not fit is of no use here
                self.reader: Any = determine_reader_writer_from_dataset_json(self.description, str(file), verbose=False)
        except RuntimeError as error:
            raise GenSegError(f"none of nnU-Net's readers can read {file}; restore it") from error

    def _files(self, name: str) -> tuple[list[Path], Path]:
        images, label = case_files(self.folder, self.description, [name])[name]
        outside = [file for file in (*images, label) if not file.resolve().is_relative_to(self.folder.resolve())]
        if outside and not self.links:
            raise GenSegError(f"{outside[0]} is not in {self.folder}; put the file itself there")
        return images, label

    def read(self, name: str) -> ShownCase:
        """Reads a case.

        Raises:
            GenSegError: a file is missing or damaged.
        """
        images, label = self._files(name)
        try:
            image, properties = self.reader().read_images([str(file) for file in images])
            labels, _ = self.reader().read_seg(str(label))
        except Exception as error:  # whatever the formats' libraries raise
            raise GenSegError(f"{name} cannot be read ({error}); restore {images[0]} and {label}") from error
        if image.shape[1:] != labels.shape[1:]:
            raise GenSegError(f"image and mask of {name} differ in shape: {image.shape[1:]}, {labels.shape[1:]}; restore both")
        spacing = tuple(float(step) for step in properties["spacing"])
        return ShownCase(image, labels[0].astype(np.int16), spacing, in_colour(image, self.reader))


class ReviewedPairs:
    """Pairs, each with the real case that it was made from, read when they are asked for.

    Args:
        folder: that `genseg generate` wrote.

    Raises:
        GenSegError: it holds no pairs, or not all their files.
    """

    def __init__(self, folder: Path) -> None:
        self.record = PairFolder.read(folder)
        dataset = in_form(self.record.origin.get("dataset"), str, "the name of a dataset", f"`origin.dataset` of {folder}")
        names = [dataset, *self.record.sources, *self.record.sources.values()]
        paths = [name for name in names if name in ("", ".", "..") or Path(name).name != name or "\\" in name]
        if paths:
            raise GenSegError(f"the record in {folder} holds {paths[0]!r}, which is no name of a case or dataset; restore it")
        first, source = next(iter(self.record.sources.items()))
        self.synthetic = ShownCases(folder, first, links=False)
        raw = Path(os.environ.get("nnUNet_raw") or folder / "none") / dataset
        self.real = ShownCases(raw, source, links=True) if (raw / DESCRIPTION).is_file() else None
        """None: the raw dataset is not on this machine, or nnUNet_raw is not set."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, bool], ShownCase] = OrderedDict()

    def read_first(self) -> None:
        """Reads the first pair and its real case ahead, so that the page shows them at once."""
        for real in (False, True)[: 1 if self.real is None else 2]:
            with suppress(GenSegError):  # the page tells it
                self.case(next(iter(self.sources)), real)

    @property
    def sources(self) -> Mapping[str, str]:
        """For every pair the case that it was made from, in the order of their names."""
        return self.record.sources

    def case(self, name: str, real: bool) -> ShownCase:
        """A pair, or the real case that it was made from.

        Raises:
            GenSegError: it cannot be read.
            KeyError: there is no such pair, or no real case.
        """
        reader = self.real if real else self.synthetic
        source = self.sources[name] if real else name
        if name not in self.sources or reader is None:
            raise KeyError(name)
        with self._lock:  # what two requests need is read once
            found = self._kept.pop((source, real), None) or reader.read(source)
            self._kept[source, real] = found
            while len(self._kept) > 1 and sum(case.image.nbytes + case.labels.nbytes for case in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        return found
