"""Pictures of images and their masks for a page of limited size: fewer or smaller slices where there are many images."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_genseg.plots.samples import Picture
from nnunetv2_genseg.plots.slices import Array, image_picture, outline_picture, shown_size

SAMPLE = 8
"""Images that are drawn to estimate how many bytes all need."""


@dataclass(frozen=True)
class Detail:
    """How much of an image is shown."""

    longest: int
    """Pixels of the longer side of a slice, at most."""
    slices: int
    """Slices of a volume, at most."""


DETAILS = (Detail(256, 32), Detail(192, 16), Detail(128, 12), Detail(96, 8))
"""From the finest on; the first one is taken in which all images fit."""
Strip = dict[str, Any]
"""Slices of an image, as the page reads them: two encoded pictures, the numbers of their slices, and which is shown first."""


def strip(image: Array, labels: Array, spacing: Sequence[float], window: Picture, detail: Detail) -> Strip:
    """Evenly spread slices of an image and of its mask's outlines.

    Args:
        image: (C, slices, height, width) raw intensities.
        labels: (slices, height, width) integers.
        spacing: of a slice's rows and columns, mm.
        window: see `window_of_volume`.
        detail: how much is shown.
    """
    count = min(len(labels), detail.slices)
    chosen = np.linspace(0, len(labels) - 1, count).round().astype(int)
    size = shown_size(labels.shape[1:], spacing, detail.longest)
    own = shown_size(labels.shape[1:], spacing, min(detail.longest, max(labels.shape[1:])))
    shown = labels[chosen]
    return {
        "image": base64.b64encode(image_picture(image[:, chosen], window, own)).decode(),
        "outline": base64.b64encode(outline_picture(shown, size)).decode(),
        "slices": chosen.tolist(),
        "of": len(labels),
        "first": int((shown > 0).sum(axis=(1, 2)).argmax()) if (shown > 0).any() else count // 2,
        "size": list(size),
    }


def fitted(groups: Sequence[Sequence[str]], draw: Callable[[str, Detail], Strip], budget: int) -> tuple[dict[str, Strip], Detail]:
    """As many groups of pictures as fit, in the finest detail in which all of them fit.

    Args:
        groups: names of pictures that are shown together, the most important ones first.
        draw: makes the picture of a name.
        budget: characters of all pictures, at most.

    Returns:
        Pictures by name, of whole groups alone, and their detail.
    """
    names = list(dict.fromkeys(name for group in groups for name in group))
    sample = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), SAMPLE)).round().astype(int)]
    for detail in DETAILS:
        if sum(map(_size, (draw(name, detail) for name in sample))) / len(sample) * len(names) <= 0.95 * budget:
            break
    pictures: dict[str, Strip] = {}
    for group in groups:
        new = {name: draw(name, detail) for name in group if name not in pictures}
        budget -= sum(map(_size, new.values()))
        if budget < 0:
            break
        pictures |= new
    return pictures, detail


def _size(of: Strip) -> int:
    """Characters that a picture needs in the page."""
    return len(of["image"]) + len(of["outline"]) + 8 * len(of["slices"]) + 200
