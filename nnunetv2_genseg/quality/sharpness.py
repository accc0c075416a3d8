"""Sharpness: how much of the fine texture of the real images the synthetic ones have."""

from __future__ import annotations

from nnunetv2_genseg.quality.base import MEASURES, Samples
from nnunetv2_genseg.quality.spectrum import high_frequency_ratio


@MEASURES.register("sharpness")
def sharpness(samples: Samples) -> float:
    """Energy of the synthetic images above half of the Nyquist frequency over that of the real ones, mean over the channels.

    1: equally sharp. Below 1: blurred. NaN if every channel of the real images is constant.
    """
    return float(high_frequency_ratio(samples.real, samples.synthetic).nanmean())
