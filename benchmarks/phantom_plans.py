"""Phantoms planned by nnU-Net in this process within seconds, for `gpu.py` and `growth.py`."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from building import nnunet_folders
from nnunetv2_genseg.phantoms import PhantomDataset
from tests.integration.datasets import use_threads

INTENSITIES = 10_000
"""Voxels for the statistics of intensities; nnU-Net draws 100 million."""


def write_ranked(dataset: PhantomDataset, raw: Path) -> None:
    """Writes a phantom with the ranks of its training cases, as the real datasets have them."""
    folder = dataset.write(raw)
    with open(folder / "cases.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("case", "part", "rank"))
        rows.writerows((f"tr_{i:03d}", "Tr", i) for i in range(dataset.training_cases))


def plan_phantom(folder: Path, number: int, configuration: str, patch: tuple[int, ...] = (), batch_size: int = 2) -> None:
    """Plans and preprocesses the raw dataset below `folder`.

    Args:
        folder: with nnU-Net's `raw` folder; its `preprocessed` folder is made.
        number: of the dataset.
        configuration: as in "2d".
        patch: its extent, instead of what nnU-Net plans.
        batch_size: instead of what nnU-Net plans.
    """
    os.environ.update(nnunet_folders(folder, folder))
    with pytest.MonkeyPatch.context() as patched:
        use_threads(patched)
        extractor = DatasetFingerprintExtractor(number, num_processes=1)
        extractor.num_foreground_voxels_for_intensitystats = INTENSITIES
        extractor.run(overwrite_existing=True)
        name = plan_and_preprocess_api.plan_experiments([number])
        path = next((folder / "preprocessed").glob(f"Dataset{number:03d}_*/{name}.json"))
        plans = json.loads(path.read_text())
        plans["configurations"][configuration]["batch_size"] = batch_size
        if patch:
            plans["configurations"][configuration]["patch_size"] = list(patch)
        path.write_text(json.dumps(plans))
        plan_and_preprocess_api.preprocess([number], name, [configuration], [1])
