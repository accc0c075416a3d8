"""What reviewers think of written pairs, learned by a training: fewer pairs with the defect that they reject."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg import cli
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES
from nnunetv2_genseg.generators.smoothing import neighbourhood_mean
from nnunetv2_genseg.synthesis.pairs import Pairs
from nnunetv2_genseg.synthesis.sources import PAIR_SOURCES
from nnunetv2_genseg.synthesis.sources.deformation import DeformationSource
from nnunetv2_genseg.synthesis.spatial import per_patch
from nnunetv2_genseg.trainers import GenSegTrainerShort

from .conftest import DATASET_ID, make_trainer
from .datasets import Kind, plan

SETTINGS = {
    "schedule": {"warmup": 0.0, "ramp": 0.0, "tail": 0.0},
    "mixing": {"share": 1.0, "sources": {"smudged": 1.0}},
    "paste": {"probability": 0.0},
    "feedback": {"enabled": False},
}
"""Every patch becomes a pair of the source `smudged`."""
PAIRS = 48
KINDS = {"photographs": (Kind(), "2d"), "volumes": (Kind(dims=3, regions=True, ignore=True), "3d_fullres")}


class SmudgedSource(DeformationSource):
    """Deformed pairs; in about half of them the image is blurred along the boundaries of the mask."""

    drawn: list[tuple[torch.Tensor, bool]] = []
    """Every image that was drawn, and whether it has the defect."""

    def sample(self, image: torch.Tensor, labels: torch.Tensor, rng: torch.Generator) -> Pairs:
        pairs = super().sample(image, labels, rng)
        smudged = torch.rand(len(image), generator=rng) < 0.5
        blurred, near = pairs.image, (pairs.labels[:, None] % 3 > 0).float()
        for _ in range(3):
            blurred, near = neighbourhood_mean(blurred), neighbourhood_mean(near)
        defect = per_patch(smudged, image) & (near > 0.02) & (near < 0.98)
        shown = torch.where(defect, blurred, pairs.image)
        type(self).drawn += list(zip(shown, smudged.tolist(), strict=True))
        return Pairs(shown, pairs.labels, pairs.grid, pairs.accepted)


@pytest.fixture(autouse=True)
def smudged(monkeypatch: pytest.MonkeyPatch) -> type[SmudgedSource]:
    monkeypatch.setitem(PAIR_SOURCES._parts, "smudged", SmudgedSource)
    monkeypatch.setattr(SmudgedSource, "drawn", [])
    return SmudgedSource


def array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def sharpness(folder: Path, name: str) -> float:
    """The step of the intensities across the boundary of a written pair's mask, as a fraction of their spread: of pixels alone."""
    image = array(next((folder / "imagesTr").glob(f"{name}_0000.*"))).astype(float)
    labels = array(next((folder / "labelsTr").glob(f"{name}.*")))
    image = image.mean(axis=-1) if image.ndim > labels.ndim else image
    inside = (labels > 0) & (labels < 3)
    steps = []
    for axis in range(labels.ndim):
        crosses = np.diff(inside.astype(int), axis=axis) != 0
        steps += np.abs(np.diff(image, axis=axis))[crosses].tolist()
    return float(np.mean(steps) / image.std())
