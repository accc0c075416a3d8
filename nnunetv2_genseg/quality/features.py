"""Features of images by which distributions of images are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

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


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """`function` of at most `size` images at once, without graph, joined along the first axis."""
    return torch.cat([function(part) for part in torch.split(images, size)])
