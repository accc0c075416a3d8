"""Mode `tissue`: the generator draws the whole image from labels and tissue classes of the unlabelled part."""

from __future__ import annotations

from nnunetv2_genseg.synthesis.modes.base import MODES
from nnunetv2_genseg.synthesis.modes.mask import MaskMode


@MODES.register("tissue")
class TissueMode(MaskMode):
    """For small labels: the condition says what surrounds them."""

    uses_tissues = True
