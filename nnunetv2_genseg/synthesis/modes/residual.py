"""Mode `residual`: the deformed real image plus what a change of the condition changes in the generator's drawing."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.modes.base import MODES, Redrawing
from nnunetv2_genseg.synthesis.spatial import warp_image


@MODES.register("residual")
class ResidualMode:
    """Keeps the texture of the real image.

    Far from what changed the two drawings are nearly equal, so that the generator's errors nearly cancel. They do not cancel
    exactly: the generator's norms take statistics over the whole patch.
    """

    uses_tissues = True
    cancels = True

    def image(self, redrawing: Redrawing) -> Tensor:
        """The deformed image + G(wanted) − G(present), with the same style; exactly the first where the two are equal."""
        assert redrawing.present is not None
        conditions = torch.cat([redrawing.wanted, redrawing.present])  # one call for both: with small patches calls cost
        wanted, present = redrawing.generator.sample(conditions, torch.cat([redrawing.style] * 2)).chunk(2)
        return warp_image(redrawing.image, redrawing.grid) + (wanted - present)
