"""Raw cases in nnU-Net's normalised intensities at their own resolution, and images and masks back in a raw case's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from torch import Tensor

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.planning import channel_names, label_codec, label_table
from nnunetv2_genseg.trainers.preflight import first_of
from nnunetv2_genseg.trainers.raw_formats import channels_in

Array = npt.NDArray[Any]
SAMPLE = 1_000_000
"""Voxels of a channel from which its normalisation is measured, at most."""
TOLERANCE = 1e-3
"""Deviation of a normalisation from a straight line, as a fraction of the channel's range, that is still taken for one."""


@dataclass(frozen=True)
class Line:
    """How nnU-Net's normalised intensities of a channel and the raw ones belong together: raw = scale · normalised + offset."""

    scale: float
    offset: float
    straight: bool
    """False if that is an approximation: the normalisation is no straight line."""
    low: float
    """Least normalised intensity: what is darker was clipped (CT)."""
    high: float
    """Largest normalised intensity."""

    @staticmethod
    def measured(raw: Array, normalised: Array) -> Line:
        """The line through the voxels of a channel whose intensities were not clipped.

        Args:
            raw: (N,) raw intensities.
            normalised: (N,) the same voxels after nnU-Net's normalisation.
        """
        low, high = float(normalised.min()), float(normalised.max())
        chosen = np.linspace(0, len(raw) - 1, min(len(raw), SAMPLE)).astype(np.int64)
        y, x = raw[chosen].astype(np.float64), normalised[chosen].astype(np.float64)
        between = (x > low) & (x < high)
        if between.any() and np.ptp(x[between]) > 0:
            y, x = y[between], x[between]
        spread = x.var()
        scale = float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 0 else 1.0
        scale = scale if scale != 0 else 1.0
        offset = float(y.mean() - scale * x.mean())
        error = float(np.abs(scale * x + offset - y).max())
        return Line(scale, offset, error <= TOLERANCE * max(float(np.ptp(y)), 1e-12), low, high)


@dataclass(frozen=True)
class RawCase:
    """A raw case. Its axes are in the order of the plans, and it is cropped to what is not zero, as nnU-Net does it."""

    name: str
    files: list[Path]
    """Of the image, in the order of the channels."""
    image: Tensor
    """(C, *spatial) float32, three axes: normalised, but at the case's own resolution and not clipped."""
    labels: Tensor
    """(*spatial) int64 class map."""
    outside: Tensor
    """(*spatial) booleans: where nnU-Net takes the image for empty."""
    spacing: tuple[float, ...]
    """Of the three axes, mm."""
    lines: tuple[Line, ...]
    """Of every channel."""
    lowest: tuple[float, ...]
    """Raw intensity of every channel, at most 0."""
    properties: dict[str, Any]
    """What nnU-Net's reader tells of the geometry."""
    whole: tuple[int, ...]
    """Extent before it was cropped."""
    place: tuple[slice, ...]
    """Of the cropped image in the whole one."""


class RawCases:
    """The raw training cases of a dataset, and the way to nnU-Net's plans and back.

    Args:
        plans: nnU-Net's PlansManager.
        configuration: its ConfigurationManager.
        description: the content of dataset.json.
        folder: of the raw dataset.
        names: the cases.

    Raises:
        GenSegError: a file of a case is missing.
    """

    def __init__(self, plans: Any, configuration: Any, description: dict[str, Any], folder: Path, names: Sequence[str]) -> None:
        self.plans = plans
        self.configuration = configuration
        manager = plans.get_label_manager(description)
        self.codec, self._table = label_codec(manager), label_table(manager)
        self.reader: Any = plans.image_reader_writer_class
        self.files = case_files(folder, description, names)
        """Image files and label file of every case."""
        self.ending: str = description["file_ending"]
        self.channels = len(channel_names(description))
        self._preprocessor = configuration.preprocessor_class(verbose=False)

    def load(self, name: str) -> tuple[Array, Array, dict[str, Any]]:
        """The content of a case's files, as nnU-Net's reader gives it.

        Returns:
            (C, slices, height, width) raw intensities, (1, slices, height, width) labels, and the geometry.

        Raises:
            GenSegError: it cannot be read, or is not as dataset.json says.
        """
        files, label = self.files[name]
        try:
            raw, properties = self.reader().read_images([str(file) for file in files])
            segmentation, _ = self.reader().read_seg(str(label))
        except Exception as error:  # whatever the formats' libraries raise
            raise GenSegError(f"the raw case {name} cannot be read ({error}); restore {files[0]} and {label}") from error
        if len(raw) != self.channels or len(raw) != sum(channels_in(file, self.reader) for file in files):
            raise GenSegError(
                f"the raw case {name} has {len(raw)} channels in {len(files)} files, the dataset {self.channels}; such images "
                "cannot be written. Use one file a channel, or photographs with the channels of dataset.json"
            )
        if raw.shape[1:] != segmentation.shape[1:]:
            raise GenSegError(f"image and mask of the raw case {name} differ in shape: {raw.shape[1:]}, {segmentation.shape[1:]}")
        return raw, segmentation, properties

    def read(self, name: str) -> RawCase:
        """Reads a case.

        Raises:
            GenSegError: it cannot be read, or is not as dataset.json says.
        """
        raw, segmentation, properties = self.load(name)
        order = [0, *(axis + 1 for axis in self.plans.transpose_forward)]
        raw, segmentation = raw.transpose(order).astype(np.float32), segmentation.transpose(order)
        whole = raw.shape[1:]
        raw, segmentation, box = crop_to_nonzero(raw, segmentation.astype(np.int16))
        outside = segmentation[0] < 0
        properties["shape_before_cropping"], properties["bbox_used_for_cropping"] = whole, box
        lowest = tuple(min(0.0, float(channel.min())) for channel in raw)
        image, lines = self._normalised(raw, segmentation)
        return RawCase(
            name=name,
            files=self.files[name][0],
            image=torch.from_numpy(image),
            labels=self.classes(name, segmentation[0]),
            outside=torch.from_numpy(outside),
            spacing=tuple(float(properties["spacing"][axis]) for axis in self.plans.transpose_forward),
            lines=lines,
            lowest=lowest,
            properties=properties,
            whole=tuple(whole),
            place=tuple(slice(*ends) for ends in box),
        )

    def _normalised(self, raw: Array, segmentation: Array) -> tuple[Array, tuple[Line, ...]]:
        """(C, *spatial) intensities on the line of nnU-Net's normalisation, not clipped, and the lines."""
        properties = self.plans.foreground_intensity_properties_per_channel
        normalised = self._preprocessor._normalize(raw.copy(), segmentation, self.configuration, properties)
        image, lines = np.empty_like(raw), []
        for c, masked in enumerate(self.configuration.use_mask_for_norm):
            inside = segmentation[0] >= 0 if masked else np.ones(raw.shape[1:], bool)
            line = Line.measured(raw[c][inside], normalised[c][inside])
            image[c] = (raw[c] - line.offset) / line.scale
            if masked:
                image[c][~inside] = 0
            lines.append(line)
        return image, tuple(lines)

    def classes(self, name: str, segmentation: Array) -> Tensor:
        """(*spatial) class map of nnU-Net's labels, −1 being background.

        Raises:
            GenSegError: a label is not declared.
        """
        try:
            labels = torch.from_numpy(segmentation.astype(np.int64))
            return self._table.to_classes(labels.masked_fill(labels == -1, 0))
        except GenSegError as error:
            raise GenSegError(f"in the mask of the raw case {name}: {error}") from None

    def whole_volume(self, case: RawCase) -> tuple[Tensor, Tensor, Tensor]:
        """Image, class map and empty voxels of a case before it was cropped; its axes stay in the order of the plans."""
        zero = [
            0.0 if masked else -line.offset / line.scale
            for line, masked in zip(case.lines, self.configuration.use_mask_for_norm, strict=True)
        ]
        image = torch.tensor(zero).view(-1, 1, 1, 1).repeat(1, *case.whole)
        labels, outside = torch.zeros(case.whole, dtype=torch.int64), torch.ones(case.whole, dtype=torch.bool)
        image[(slice(None), *case.place)] = case.image
        labels[case.place], outside[case.place] = case.labels, case.outside
        return image, labels, outside

    # ------------------------------------------------------------------ to the plans' resolution and back

    def planned_spacing(self, case: RawCase) -> list[float]:
        """The spacing at which the network sees a case, three axes, mm."""
        target = [float(step) for step in self.configuration.spacing]
        return [case.spacing[0]] * (len(target) == 2) + target

    def planned(self, case: RawCase) -> tuple[Tensor, Tensor]:
        """Image, (C, *spatial), and class map, (*spatial), as nnU-Net's preprocessing makes them."""
        target, shape = self.planned_spacing(case), self._planned_shape(case)
        clipped = np.stack([np.clip(c, line.low, line.high) for c, line in zip(case.image.numpy(), case.lines, strict=True)])
        image = self.configuration.resampling_fn_data(clipped, shape, case.spacing, target)
        return _tensor(image).float(), self.planned_labels(case, case.labels)

    def _planned_shape(self, case: RawCase) -> Array:
        shape: Array = compute_new_shape(tuple(case.labels.shape), case.spacing, self.planned_spacing(case))
        return shape

    def planned_labels(self, case: RawCase, labels: Tensor) -> Tensor:
        """(*spatial) class map of the extent of a case, at the resolution of the plans."""
        maps = labels.numpy()[None].astype(np.int16)
        target, shape = self.planned_spacing(case), self._planned_shape(case)
        return _tensor(self.configuration.resampling_fn_seg(maps, shape, case.spacing, target))[0].long()

    def at_own_resolution(self, case: RawCase, image: Tensor) -> Tensor:
        """(C, *spatial) at the resolution of the plans to that of the case."""
        shape, target = tuple(case.labels.shape), self.planned_spacing(case)
        return _tensor(self.configuration.resampling_fn_data(image.numpy(), shape, target, case.spacing)).float()

    def original(self, case: RawCase, image: Tensor, labels: Tensor, outside: Tensor) -> tuple[Array, Array]:
        """An image and a mask in the form of a raw case.

        Args:
            case: whose geometry and intensities they get.
            image: (C, *spatial) normalised, at the case's resolution.
            labels: (*spatial) class map.
            outside: (*spatial) booleans: where channels that are normalised within the subject are empty.

        Returns:
            (C, slices, height, width) float32 raw intensities and (slices, height, width) labels, before cropping. No
            intensity is below 0, or below the lowest of the case if that is negative. A class that several labels share is
            written as one of them.
        """
        raw = np.zeros((len(image), *case.whole), np.float32)
        for c, (line, masked) in enumerate(zip(case.lines, self.configuration.use_mask_for_norm, strict=True)):
            values = (image[c].double() * line.scale + line.offset).clamp(min=case.lowest[c])
            raw[c][case.place] = (values.masked_fill(outside, 0) if masked else values).float().numpy()
        segmentation = np.zeros(case.whole, np.int16)
        segmentation[case.place] = self._table.to_labels(labels).numpy()
        back = list(self.plans.transpose_backward)
        return raw.transpose([0, *(axis + 1 for axis in back)]), segmentation.transpose(back)


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def case_files(folder: Path, description: dict[str, Any], names: Sequence[str]) -> dict[str, tuple[list[Path], Path]]:
    """Image files and label file of every case.

    Args:
        folder: of the raw dataset.
        description: the content of its dataset.json.
        names: the cases.

    Raises:
        GenSegError: a file is missing.
    """
    ending = description["file_ending"]
    find: Callable[[str], tuple[list[Path], Path]]
    if "dataset" in description:  # files at any place
        listed = get_filenames_of_train_images_and_targets(str(folder), deepcopy(description))

        def find(name: str) -> tuple[list[Path], Path]:
            files = listed.get(name, {"images": [], "label": folder / "labelsTr" / f"{name}{ending}"})
            return [Path(file) for file in files["images"]], Path(files["label"])
    else:

        def find(name: str) -> tuple[list[Path], Path]:
            digits = "[0-9]" * 4
            images = sorted((folder / "imagesTr").glob(f"{escape(name)}_{digits}{ending}"))
            return images, folder / "labelsTr" / f"{name}{ending}"

    found = {name: find(name) for name in names}
    missing = [name for name, (images, label) in found.items() if not images or not all(map(Path.is_file, [*images, label]))]
    if missing:
        raise GenSegError(
            f"{folder} lacks the raw image or mask of {len(missing)} of {len(names)} training cases ({first_of(missing)}), whose "
            "original form pairs are written in; restore them, or correct nnUNet_raw"
        )
    return found
