"""The real masks themselves: all that is new about them is their deformation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.mask_sources.base import MASK_SOURCES


@MASK_SOURCES.register("real")
class RealMasks:
    """Keeps the masks as they are.

    Args: as in `MaskSourceFactory`; none is read.
    """

    new_shapes = False

    def __init__(
        self,
        foreground: int,
        patch_size: Sequence[int],
        *,
        seed: int,
        device: torch.device,
        synchronise: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
    ) -> None:
        pass

    def training_step(self, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def sample(self, labels: Tensor, rng: torch.Generator, amount: Tensor | float = 1.0) -> Tensor:
        """The same masks."""
        return labels

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
