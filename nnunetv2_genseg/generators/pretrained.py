"""A trained generator as a folder: `config.json` says what it fits and which sub-folder holds its weights, as safetensors.

A generator that is written again takes the other sub-folder and is there when `config.json` names it: whenever the process ends,
the folder holds a whole generator, the one before or the new one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from safetensors import SafetensorError

from nnunetv2_genseg.config import GeneratorConfig, GenSegError
from nnunetv2_genseg.config.reading import in_form, read_json
from nnunetv2_genseg.files.atomic import replacing, write_text_atomically, writing
from nnunetv2_genseg.generators.base import Generator
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.networks import NetworkPlan

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TRAINED_ON = "trained_on"
PLACES = ("weights_0", "weights_1")
"""Sub-folders that the weights take in turn."""
FORMAT = 4
"""Of the folder. In 2 the GAN has noise inputs and its weights are averaged, in 3 the weights lie in a sub-folder.
In 4 the intensity variation is always there."""
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


def save_pretrained(
    generator: Generator, folder: Path, own: dict[str, Any], cases: Cases, further: Mapping[str, Any] | None = None
) -> None:
    """Writes a generator's weights and, last, what they fit and where they come from.

    Args:
        generator: of a family that has weights.
        folder: made if need be; a generator that is in it is replaced.
        own: the generator's `identity`.
        cases: what it was trained on.
        further: what else `config.json` says, JSON-like; it need not be the same where the generator is used.

    Raises:
        GenSegError: the family has no weights to save.
        GenSegFileError: it could not be written; a generator that was there before is intact.
    """
    saver = pretrainable(generator, own["family"])
    folder.mkdir(parents=True, exist_ok=True)
    former = _described(folder).get("weights")
    place = PLACES[former == PLACES[0]]
    with writing(folder, folder / place):
        shutil.rmtree(folder / place, ignore_errors=True)
        (folder / place).mkdir()
        saver.save_weights(folder / place)
        for path in [path for path in (folder / place).rglob("*") if path.is_file()]:
            content = path.read_bytes()
            with replacing(path) as file:  # safetensors neither flushes its file nor gives it the umask's mode
                file.write(content)
    seen = {name: sorted(part) for name, part in cases.items()}
    described = {"format": FORMAT, "weights": place, **own, TRAINED_ON: seen, **(further or {})}
    write_text_atomically(json.dumps(described, indent=2) + "\n", folder / CONFIG)
    if former in PLACES:
        shutil.rmtree(folder / former, ignore_errors=True)


def strangers_in(folder: Path) -> list[str]:
    """Names in a folder that no generator of ours has; `config.json` too if it is another program's."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = {*PLACES, *([CONFIG] if {"format", "weights", TRAINED_ON} <= _described(folder).keys() else [])}
    return sorted(names - ours)


def _described(folder: Path) -> dict[str, Any]:
    """What `config.json` holds; nothing if it holds no description of a generator."""
    try:
        return dict(read_json(folder / CONFIG, dict[str, Any], "a mapping"))
    except (OSError, GenSegError):
        return {}


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
        there = read_json(folder / CONFIG, dict[str, Any], "a mapping")
    except (OSError, GenSegError) as error:
        raise GenSegError(
            f"{folder} is not the folder of a trained generator: {CONFIG} cannot be read ({error}); name one that `genseg "
            "pretrain` wrote"
        ) from None
    if there.get("format") != FORMAT:
        raise GenSegError(
            f"the trained generator in {folder} has format {there.get('format')!r}, this version reads {FORMAT}; train it "
            "again with `genseg pretrain`"
        )
    place = in_form(there.get("weights"), Literal[PLACES], f"one of {', '.join(PLACES)}", f"`weights` in {folder / CONFIG}")
    trained_on: Cases = in_form(
        there.get(TRAINED_ON), dict[str, list[str]], "a mapping of datasets to cases", f"`{TRAINED_ON}` in {folder / CONFIG}"
    )
    for key, here in own.items():
        if not _agree(key, there.get(key), here):
            raise GenSegError(
                f"the trained generator in {folder} does not fit: {key} is {there.get(key)!r} there, {here!r} here; use one that "
                "was trained with the same"
            )
    try:
        receiver.load_weights(folder / place)
    except (OSError, LookupError, RuntimeError, SafetensorError) as error:
        raise GenSegError(
            f"the weights in {folder} are missing, damaged or of other shapes: {error}; train that generator again"
        ) from error
    if not all(bool(weight.isfinite().all()) for weight in generator.weights()):
        raise GenSegError(f"the weights in {folder} hold NaN or infinity; train that generator again")
    return trained_on


def _agree(key: str, there: Any, here: Any) -> bool:
    comparable = isinstance(there, list) and len(there) == len(here) and all(isinstance(n, (int, float)) for n in there)
    if key != "spacing" or not comparable:
        return bool(there == here)
    return all(math.isclose(one, other, rel_tol=SPACING_TOLERANCE) for one, other in zip(there, here, strict=True))
