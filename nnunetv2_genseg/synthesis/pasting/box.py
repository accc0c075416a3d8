"""A box at the same place of the patch, whatever it holds: CutMix (Yun et al., ICCV 2019, doi 10.1109/ICCV.2019.00612)."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.pasting.base import PASTES, PasteContext

FRACTION = (0.1, 0.5)
"""Smallest and largest fraction of the patch's volume that a box takes."""


@PASTES.register("box")
class Box:
    """A box of uniform volume, of the patch's own proportions, that lies within the patch."""

    def __init__(self, context: PasteContext) -> None:
        pass

    def __call__(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """See `Paste`."""
        count, spatial = len(labels), labels.shape[1:]
        drawn = torch.rand(count, 1 + len(spatial), generator=rng, device=rng.device)
        smallest, largest = FRACTION
        side = (smallest + (largest - smallest) * drawn[:, 0]) ** (1 / len(spatial))
        inside = torch.ones_like(labels, dtype=torch.bool)
        for axis, extent in enumerate(spatial):
            start = drawn[:, 1 + axis] * (1 - side)
            centre = (torch.arange(extent, device=labels.device) + 0.5) / extent
            within = (centre >= start[:, None]) & (centre < (start + side)[:, None])
            inside &= within.view(count, *(extent if i == axis else 1 for i in range(len(spatial))))
        return image, labels, inside
