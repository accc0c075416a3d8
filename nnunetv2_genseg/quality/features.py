"""Features of images by which distributions of images are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunetv2_genseg.quality.base import in_batches

SMALLEST_DEVIATION = 1e-6


def encoder_features(segmenter: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The strongest response of every channel of every stage of a segmentation network's encoder.

    Means over space would tell nothing, because nnU-Net's networks normalise every channel of a patch. For the same reason these
    features hardly depend on the brightness and contrast of an image.

    Args:
        segmenter: a trained network with an `encoder` that returns the features of its stages.
        images: (B, C, *spatial).
        batch_size: images that the network is given at once.

    Returns:
        (B, channels of all stages) float64, on the CPU.
    """
    encoder: nn.Module = segmenter.encoder  # type: ignore[assignment]

    def strongest(part: Tensor) -> Tensor:
        return torch.cat([stage.flatten(2).amax(dim=2) for stage in encoder(part)], dim=1)

    return in_batches(strongest, images, batch_size).cpu().double()  # MPS knows no float64


def standardised(features: Tensor, reference: Tensor) -> Tensor:
    """(n, channels) features less the mean of the reference, (m, channels), over its standard deviation."""
    deviation = reference.std(dim=0, correction=0) + SMALLEST_DEVIATION
    return (features - reference.mean(dim=0)) / deviation
