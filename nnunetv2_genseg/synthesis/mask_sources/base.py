"""What every mask source offers, and the registry that finds one by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nnunetv2_genseg.registry import Registry


class MaskSource(Protocol):
    """Gives each patch the mask that is then deformed."""

    new_shapes: bool
    """Whether `sample` can return masks other than the real ones; then a deformed real image cannot show them."""

    def training_step(self, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """One optimisation step on the masks of real patches, (B, *spatial) int64; the losses by name, without graph."""

    def sample(self, labels: Tensor, rng: torch.Generator, amount: Tensor | float = 1.0) -> Tensor:
        """New masks in place of real ones, (B, *spatial) int64; `amount` scales how far they are from them."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs: tensors, numbers, strings, lists and dictionaries only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, whose tensors may come from another device."""


class MaskSourceFactory(Protocol):
    """Builds a mask source."""

    def __call__(
        self,
        foreground: int,
        patch_size: Sequence[int],
        *,
        seed: int,
        device: torch.device,
        synchronise: Callable[[Iterable[Tensor]], None],
    ) -> MaskSource:
        """Builds it.

        Args:
            foreground: number of foreground classes; a class beyond them is the ignore label.
            patch_size: spatial extent of a patch, voxels.
            seed: of initial weights.
            device: where everything lives.
            synchronise: averages tensors over the processes of a distributed training, in place.
        """
        ...


MASK_SOURCES: Registry[MaskSourceFactory] = Registry("masks.source", __package__ or "")
