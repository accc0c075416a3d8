"""Compares pairs that were written with the real cases of a fold, by figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.files.atomic import write_text_atomically
from nnunetv2_genseg.quality.feature_figures import distribution_figures, diversity_figures
from nnunetv2_genseg.quality.figures import figure, summary
from nnunetv2_genseg.quality.frechet_distance import INSTALL, SUFFICIENT
from nnunetv2_genseg.quality.halves import FEWEST, Division, divisions
from nnunetv2_genseg.quality.intensities import intensity_figures
from nnunetv2_genseg.quality.nearest import nearest_figures
from nnunetv2_genseg.quality.own_features import feature_function
from nnunetv2_genseg.trainers import standalone
from nnunetv2_genseg.trainers.fold_network import FoldNetwork
from nnunetv2_genseg.trainers.judged_cases import BACKGROUND, Judge, Judged
from nnunetv2_genseg.trainers.pair_folder import PairFolder, fold_cases
from nnunetv2_genseg.trainers.progress_bar import with_progress
from nnunetv2_genseg.trainers.provenance import versions
from nnunetv2_genseg.trainers.raw_cases import RawCases

FILE_NAME = "quality.json"
FORMAT = 1
DIVISIONS = 10
"""Random halves of the real cases, over which distances are averaged."""
OWN_NETWORK = (
    "This network was trained on such pairs, which may raise their Dice. Judge by a network that was trained on real cases "
    "alone, too: -tr nnUNetTrainer."
)

Cases = Mapping[str, Judged]


@dataclass(frozen=True)
class Judgement(standalone.Standalone):
    """Which pairs are judged by which network. `output` is the folder that the result is written into."""

    folder: Path
    """Of the pairs."""
    most: int | None = None
    """As many pairs are judged, the first ones; None: all."""
    features: str | None = None
    """`module:function` of a user's features; None: those of the network's encoder."""


def judge(settings: Judgement) -> dict[str, Any]:
    """Judges the pairs of a folder and writes the result, quality.json; returns its content.

    Raises:
        GenSegError: the network, the pairs or the real cases are not there or do not belong together; nothing was written.
        GenSegFileError: the result cannot be written.
        FileNotFoundError: the dataset was not planned or preprocessed.
    """
    if settings.most is not None and settings.most < 1:
        raise GenSegError(f"-n must be 1 or more, found {settings.most}")
    standalone.require_writable(settings.output)
    own_features = None if settings.features is None else feature_function(settings.features)
    network = FoldNetwork(settings)
    dataset = network.plans.dataset_name
    folder = PairFolder.read(settings.folder, dataset, settings.fold, settings.most)
    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / dataset
    training, validation = fold_cases(preprocessed, network.configuration.data_identifier, settings.fold, folder)
    if len(training) < 2:
        raise GenSegError(f"fold {settings.fold} has 1 training case; pairs can be compared with 2 or more")
    of_network = network.plans, network.configuration, network.description
    raw = RawCases(*of_network, Path(os.environ["nnUNet_raw"]) / dataset, [*training, *validation])
    written = RawCases(*of_network, settings.folder, list(folder.sources))
    judging = Judge(network, own_features)
    real = {name: judging.look(raw, name, segment=False) for name in with_progress(training, "training cases")}
    held = {name: judging.look(raw, name, segment=True) for name in with_progress(validation, "validation cases")}
    pairs = {name: judging.look(written, name, segment=True) for name in with_progress(list(folder.sources), "pairs")}
    content = _about(settings, network) | {"pairs": len(pairs), "training_cases": len(real), "validation_cases": len(held)}
    content |= _figures(judging, folder, real, held, pairs)
    settings.output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(json.dumps(content, indent=1, allow_nan=False) + "\n", settings.output / FILE_NAME)
    return content


def _about(settings: Judgement, network: FoldNetwork) -> dict[str, Any]:
    """What was judged by what."""
    return {
        "format": FORMAT,
        "folder": str(settings.folder),
        "dataset": network.plans.dataset_name,
        "configuration": settings.configuration,
        "fold": settings.fold,
        "network": {"trainer": settings.trainer, "plans": settings.plans, "checkpoint": network.checkpoint.name},
        "features": settings.features or "encoder of the network",
        "versions": versions("nnunetv2", "torch", "numpy", "scipy"),
    }


def _figures(judging: Judge, folder: PairFolder, real: Cases, held: Cases, pairs: Cases) -> dict[str, Any]:
    """All figures, and remarks on those that are missing or uncertain."""
    divided = divisions(folder.sources, DIVISIONS, np.random.default_rng(0))
    remarks = [OWN_NETWORK] if judging.network.learned_from_pairs else []
    if not held:
        remarks.append("The fold has no validation cases, so there is no Dice of real cases to compare with.")
    if not divided:
        remarks.append(f"Fewer than {FEWEST} training cases have a pair: distances of halves are left out.")
    found: dict[str, Any] = {"fidelity": _fidelity(judging, held, pairs)}
    found["dice_of_pairs"] = {name: {of: figure(dice) for of, dice in pair.dice.items()} for name, pair in pairs.items()}
    found["intensities"] = _intensities(judging, real, pairs, divided)
    of_pixels = [{name: case.pixels for name, case in part.items()} for part in (real, pairs)]
    of_masks = {"new_masks": sum(folder.new_masks.values()), "distinct_masks": len({pair.mask for pair in pairs.values()})}
    spaces = {"pixels": of_pixels}
    if judging.has_features:
        first, second = ({name: case.features for name, case in part.items()} for part in (real, pairs))
        of_cases, of_pairs = ({name: of.mean(dim=0) for name, of in part.items()} for part in (first, second))
        found["distribution"] = distribution_figures(first, second, divided)
        remarks += _of_samples(found["distribution"])
        found["diversity"] = diversity_figures(of_cases, of_pairs, folder.sources, divided) | of_masks
        spaces = {"features": [of_cases, of_pairs]} | spaces
    else:
        remarks.append("The network has no encoder: figures on its features are left out.")
        found |= {"distribution": None, "diversity": of_masks}
    found["memorisation"] = {
        space: nearest_figures(
            torch.stack(list(cases.values())), list(cases), torch.stack(list(drawn.values())), list(drawn), folder.sources
        )
        for space, (cases, drawn) in spaces.items()
    }
    return found | {"remarks": remarks}


def _fidelity(judging: Judge, held: Cases, pairs: Cases) -> dict[str, Any]:
    """Dice of every class between masks and what the network segments: of the pairs, and of real validation cases."""
    parts = {"synthetic": pairs, "real": held}
    return {
        name: {part: summary(case.dice[name] for case in cases.values()) for part, cases in parts.items()}
        for name in judging.classes
    }


def _intensities(judging: Judge, real: Cases, pairs: Cases, divided: list[Division]) -> dict[str, Any]:
    """Raw intensities of every channel and class."""

    def of(cases: Cases, channel: str, name: str) -> dict[str, Any]:
        return {case: found.intensities[channel, name] for case, found in cases.items()}

    return {
        channel: {
            name: intensity_figures(of(real, channel, name), of(pairs, channel, name), divided)
            for name in (BACKGROUND, *judging.classes)
        }
        for channel in judging.channels
    }


def _of_samples(distribution: Mapping[str, Any]) -> list[str]:
    """What is to be said of FID and KID."""
    if distribution["fid"] is None:
        return [f"FID is left out. {INSTALL}."]
    fewest = distribution["patches"][0]
    if not 0 < fewest < SUFFICIENT:
        return []
    return [
        f"FID is too large for samples of fewer than about {SUFFICIENT} patches; here they have {fewest}. Prefer KID, and "
        "compare each figure with that of the real cases, whose samples are as large."
    ]
