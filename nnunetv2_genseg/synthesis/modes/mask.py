"""Mode `mask`: the generator draws the whole image from the labels alone, as in GenSeg (Zhang et al. 2025)."""

from __future__ import annotations

from torch import Tensor

from nnunetv2_genseg.synthesis.modes.base import MODES, Redrawing


@MODES.register("mask")
class MaskMode:
    """For labels that fill the image: of what is unlabelled the generator is told nothing."""

    uses_tissues = False
    cancels = False

    def image(self, redrawing: Redrawing) -> Tensor:
        """What the generator draws."""
        return redrawing.generator.sample(redrawing.wanted, redrawing.style)
