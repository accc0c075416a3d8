"""Real image and mask deformed together: no generator, and the mask fits the image exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.generators import Generator
from nnunetv2_genseg.synthesis.pairs import Pairs
from nnunetv2_genseg.synthesis.sources.base import PAIR_SOURCES, SourceContext
from nnunetv2_genseg.synthesis.spatial import warp_image


@PAIR_SOURCES.register("deformation")
class DeformationSource:
    """Deforms the patch and its mask, and bends the intensities.

    Args:
        context: what all sources share.
    """

    generator: Generator | None = None
    shows_generator = False

    def __init__(self, context: SourceContext) -> None:
        self.context = context

    def training_step(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def sample(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> Pairs:
        """See `PairSource.sample`."""
        change = self.context.deformer.sample(labels, rng, self.context.policy.deformation)
        return self.context.finished(warp_image(image, change.grid), image, change, rng)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
