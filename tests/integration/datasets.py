"""Datasets of every kind that nnU-Net plans: phantoms changed after they were written, planned in this process."""

from __future__ import annotations

import json
import multiprocessing.dummy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor

from nnunetv2_genseg.phantoms import LABELS, PhantomDataset

Array = npt.NDArray[Any]
INTENSITIES: dict[str, Callable[[Array], Array]] = {
    "CT": lambda image: 1200 * image - 400,
    "T2": lambda image: 100 * (1 - image),
}
"""By channel name: what is made of the phantom's intensities, in about [0, 1]."""
REGIONS = {"background": 0, "whole": [1, 2], "inner": 2}
IGNORED = 3
WITH_POOLS = (
    "experiment_planning.dataset_fingerprint.fingerprint_extractor",
    "preprocessing.preprocessors.default_preprocessor",
    "training.nnUNetTrainer.nnUNetTrainer",
    "evaluation.evaluate_predictions",
)
"""Modules of nnU-Net that start processes."""
WITH_INNER = 2
"""Training cases that keep their inner structure where that label is rare."""


@dataclass(frozen=True)
class Kind:
    """How a dataset differs from the phantom that it is made of."""

    dims: int = 2
    """2 (RGB PNG) or 3 (NIfTI)."""
    channels: tuple[str, ...] = ()
    """Names of the channels, from which nnU-Net takes their normalisation; the phantom's if empty."""
    margin: float = 0.0
    """In 3D: fraction of the extent at each side that is 0 in all channels; what remains is as large as without."""
    every: int = 1
    """In 3D: every so many slices are kept."""
    regions: bool = False
    """Labels are overlapping regions."""
    ignore: bool = False
    """A quarter of every training case is not annotated."""
    rare: bool = False
    """Most training cases lack the inner structure."""

    def write(self, raw_folder: Path, dataset_id: int, cases: int = 5) -> Path:
        """Writes the raw dataset, with one test case; returns its folder."""
        extent = 32 if self.dims == 2 else round(24 / (1 - 2 * self.margin))
        folder = PhantomDataset(dataset_id, self.dims, cases, test_cases=1, extent=extent).write(raw_folder)
        for i, path in enumerate(sorted((folder / "labelsTr").iterdir())):
            labels, spacing = _read(path)
            _write(self._labels(labels, rare=self.rare and i >= WITH_INNER), spacing, path)
        if self.dims == 3:
            for path in sorted(folder.glob("images??/*")):
                self._write_channels(path)
        content = json.loads((folder / "dataset.json").read_text())
        content["labels"] = (REGIONS if self.regions else LABELS) | ({"ignore": IGNORED} if self.ignore else {})
        content |= {"regions_class_order": [1, 2]} if self.regions else {}
        content |= {"channel_names": {str(i): name for i, name in enumerate(self.channels)}} if self.channels else {}
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    def _labels(self, labels: Array, rare: bool) -> Array:
        labels = np.minimum(labels, 1) if rare else labels
        if self.ignore:
            labels[..., : labels.shape[-1] // 4] = IGNORED
        return labels[:: self.every] if self.dims == 3 else labels

    def _write_channels(self, path: Path) -> None:
        image, spacing = _read(path)
        outside = [np.abs(np.linspace(-1, 1, n)) > 1 - 2 * self.margin for n in image.shape]
        image[np.logical_or.outer(np.logical_or.outer(*outside[:2]), outside[2])] = 0
        image, spacing = image[:: self.every], (*spacing[:2], spacing[2] * self.every)
        for i, name in enumerate(self.channels or ("MRI",)):
            channel = np.where(image == 0, 0, INTENSITIES.get(name, np.asarray)(image)).astype(np.float32)
            _write(channel, spacing, path.with_name(path.name.replace("_0000.", f"_{i:04d}.")))


def _read(path: Path) -> tuple[Array, tuple[float, ...]]:
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image.GetSpacing()


def _write(array: Array, spacing: tuple[float, ...], path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes nnU-Net's pools threads of this process: starting a process costs more than all that the pool does here."""
    threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    for module in WITH_POOLS:
        monkeypatch.setattr(f"nnunetv2.{module}.multiprocessing", threads)
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", multiprocessing.dummy.Pool)


def plan(
    dataset_id: int,
    configuration: str,
    planner: str = "ExperimentPlanner",
    edit: Callable[[dict[str, Any]], None] | None = None,
    small: bool = True,
) -> str:
    """Plans with nnU-Net, lets `edit` change the plans as a user may, and preprocesses; returns the plans' name.

    Args:
        dataset_id: of a raw dataset.
        configuration: is preprocessed.
        planner: nnU-Net's class.
        edit: changes the plans in place.
        small: whether networks and batches are made smaller than nnU-Net plans them.
    """
    extractor = fingerprint_extractor.DatasetFingerprintExtractor(dataset_id, num_processes=1)
    extractor.num_foreground_voxels_for_intensitystats = 10_000  # nnU-Net draws 100 million, with replacement
    extractor.run(overwrite_existing=True)
    with mock.patch.dict(os.environ, nnUNet_n_proc_DA="1"):  # which is also the number of torch's threads here
        name: str = plan_and_preprocess_api.plan_experiments([dataset_id], planner)
    path = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{dataset_id:03d}_*/{name}.json"))
    plans = json.loads(path.read_text())
    for content in plans["configurations"].values():
        if small and "architecture" in content:
            _shrink(content["architecture"]["arch_kwargs"])
            content["batch_size"] = 2
    if edit is not None:
        edit(plans)
    path.write_text(json.dumps(plans))
    plan_and_preprocess_api.preprocess([dataset_id], name, [configuration], [1])
    return name


def _shrink(architecture: dict[str, Any]) -> None:
    """Few channels and one block a stage, for speed."""
    architecture["features_per_stage"] = [min(8 * 2**i, 16) for i in range(architecture["n_stages"])]
    for name in ("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder"):
        if name in architecture:
            architecture[name] = [1] * len(architecture[name])
