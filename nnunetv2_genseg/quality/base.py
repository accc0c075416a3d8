"""What every quality measure is given and returns, and the registry that finds one by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from nnunetv2_genseg.registry import Registry


@dataclass(frozen=True)
class Samples:
    """Synthetic pairs, the real patches that they were made from, and a segmentation network that judges them."""

    real: Tensor
    """(N, C, *spatial) real images."""
    real_labels: Tensor
    """(N, *spatial) int64 their class maps."""
    synthetic: Tensor
    """(N, C, *spatial) synthetic images, each made from the real one at its place."""
    synthetic_labels: Tensor
    """(N, *spatial) int64 their class maps."""
    reference: Tensor
    """(M, C, *spatial) real images of the whole population, which the distribution of the synthetic ones is compared with."""
    segmenter: nn.Module
    """A trained network of nnU-Net's kind in evaluation mode: (B, C, *spatial) images to (B, classes, *spatial) logits, with its
    stages' features from `segmenter.encoder`."""
    foreground: int
    """Number of foreground classes; the class maps number them from 1."""
    batch_size: int
    """Patches that the network is given at once."""


class Measure(Protocol):
    """A figure of merit of synthetic pairs."""

    def __call__(self, samples: Samples) -> float:
        """The figure; NaN if these samples do not determine it."""


NO_MEASURES = (
    *("base", "features", "spectrum"),
    *("figures", "halves", "feature_figures", "frechet_distance", "intensities", "nearest", "own_features", "table"),
)
"""Modules that hold what measures compute with, and what only whole folders of pairs are judged by."""
MEASURES: Registry[Measure] = Registry("quality measure", __package__ or "", exclude=NO_MEASURES)


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """`function` of at most `size` images at once, without graph, joined along the first axis."""
    return torch.cat([function(part) for part in torch.split(images, size)])
