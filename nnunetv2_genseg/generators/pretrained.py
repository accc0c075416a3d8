"""A trained generator as a folder: `config.json` says what it fits, safetensors hold the weights that images are drawn with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError

from nnunetv2_genseg.config import GeneratorConfig, GenSegError
from nnunetv2_genseg.generators.base import Generator
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.networks import NetworkPlan

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TRAINED_ON = "trained_on"
FORMAT = 2
"""Of the folder. In 2 the GAN has noise inputs and its weights are averaged; folders before that have no number."""
SPACING_TOLERANCE = 0.05
"""Relative difference of spacings that are taken for the same."""
Cases = Mapping[str, Sequence[str]]
"""Labelled cases that a generator was trained on, by the name of their dataset."""


@dataclass(frozen=True)
class ImageKind:
    """What the images are that a generator draws."""

    channels: tuple[str, ...]
    """Their names in dataset.json."""
    normalization: tuple[str, ...]
    """nnU-Net's scheme for every channel."""
    masked: tuple[bool, ...]
    """Whether a channel is normalised within the subject alone and 0 outside."""
    spacing: tuple[float, ...]
    """Of the voxels, mm, per axis of the patch."""


@runtime_checkable
class Pretrainable(Protocol):
    """A generator whose weights can be saved without what only its training needs."""

    def save_weights(self, folder: Path) -> None:
        """Writes the weights that `sample` runs through into an existing folder, as safetensors."""

    def load_weights(self, folder: Path) -> None:
        """The inverse of `save_weights`, into the same parameters; the rest of the generator's training starts anew."""


def pretrainable(generator: Generator, family: str) -> Pretrainable:
    """The same generator, if its weights can be saved.

    Raises:
        GenSegError: the family has none.
    """
    if not isinstance(generator, Pretrainable):
        raise GenSegError(f"generator {family!r} has no weights to save or load; choose another generator.name")
    return generator


def identity(config: GeneratorConfig, plan: NetworkPlan, layout: ConditionLayout, images: ImageKind) -> dict[str, Any]:
    """What a folder must have in common with a training that uses it, JSON-like.

    Args:
        config: the family and its width.
        plan: the segmentation network's plan.
        layout: channels of conditions and images.
        images: what they are.
    """
    return {
        "family": config.name,
        "channels": list(images.channels),
        "normalization": list(images.normalization),
        "masked": list(images.masked),
        "foreground": layout.foreground,
        "tissues": layout.tissues,
        "spacing": list(images.spacing),
        "features": list(plan.scaled(config.width)),
        "strides": [list(stride) for stride in plan.strides],
        "kernels": [list(kernel) for kernel in plan.kernels],
    }


def save_pretrained(generator: Generator, folder: Path, own: dict[str, Any], cases: Cases) -> None:
    """Writes a generator's weights and, last, what they fit and where they come from.

    Args:
        generator: of a family that has weights.
        folder: made if need be; what is in it of a generator is overwritten.
        own: the generator's `identity`.
        cases: what it was trained on.

    Raises:
        GenSegError: the family has no weights to save.
    """
    pretrainable(generator, own["family"]).save_weights(_made(folder))
    described = {"format": FORMAT} | own | {TRAINED_ON: {dataset: sorted(names) for dataset, names in cases.items()}}
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_pretrained(generator: Generator, folder: Path, own: dict[str, Any]) -> Cases:
    """Loads what `save_pretrained` wrote; optimisers, discriminator and encoder stay as they are.

    Args:
        generator: receives the weights.
        folder: a trained generator's.
        own: the `identity` of `generator`.

    Returns:
        What it was trained on.

    Raises:
        GenSegError: the family has no weights, or the folder is not one of a trained generator, or has another format, or
            does not fit, or holds NaN or infinity.
    """
    receiver = pretrainable(generator, own["family"])
    try:
        there = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise GenSegError(
            f"{folder} is not the folder of a trained generator: {CONFIG} cannot be read ({error}); name one that `genseg "
            "pretrain` wrote"
        ) from None
    if there.get("format") != FORMAT:
        raise GenSegError(
            f"the trained generator in {folder} has format {there.get('format')!r}, this version reads {FORMAT}; train it "
            "again with `genseg pretrain`"
        )
    for key, here in own.items():
        if not _agree(key, there.get(key), here):
            raise GenSegError(
                f"the trained generator in {folder} does not fit: {key} is {there.get(key)!r} there, {here!r} here; use one that "
                "was trained with the same"
            )
    try:
        receiver.load_weights(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise GenSegError(
            f"the weights in {folder} are missing, damaged or of other shapes: {error}; train that generator again"
        ) from error
    if not all(bool(weight.isfinite().all()) for weight in generator.weights()):
        raise GenSegError(f"the weights in {folder} hold NaN or infinity; train that generator again")
    trained_on: Cases = there.get(TRAINED_ON, {})
    return trained_on


def _agree(key: str, there: Any, here: Any) -> bool:
    comparable = isinstance(there, list) and len(there) == len(here) and all(isinstance(n, (int, float)) for n in there)
    if key != "spacing" or not comparable:
        return bool(there == here)
    return all(math.isclose(one, other, rel_tol=SPACING_TOLERANCE) for one, other in zip(there, here, strict=True))


def _made(folder: Path) -> Path:
    (folder / CONFIG).unlink(missing_ok=True)  # a folder that is half overwritten must not look complete
    folder.mkdir(parents=True, exist_ok=True)
    return folder
