"""Diversity: how much synthetic images differ from each other, relative to how much real ones do."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_genseg.quality.base import MEASURES, Samples
from nnunetv2_genseg.quality.features import encoder_features, standardised


@MEASURES.register("diversity")
def diversity(samples: Samples) -> float:
    """Mean distance of two synthetic images over that of the real ones they were made from.

    0: all synthetic images are the same. 1: they differ as much as the real patches. Above 1: they add variation. The distance is
    Euclidean, of the segmentation network's features, standardised by the reference.
    """
    real, synthetic, reference = (
        encoder_features(samples.segmenter, images, samples.batch_size)
        for images in (samples.real, samples.synthetic, samples.reference)
    )
    return spread(standardised(synthetic, reference)) / spread(standardised(real, reference))


def spread(features: Tensor) -> float:
    """Mean Euclidean distance of two different rows of (n, channels); 0 if all are the same, NaN if there is one row only."""
    return float(torch.pdist(features).mean())
