"""What every pair source offers, and the registry that finds one by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nnunetv2_genseg.config import GenSegConfig
from nnunetv2_genseg.generators import Generator, NetworkPlan
from nnunetv2_genseg.registry import Registry
from nnunetv2_genseg.synthesis.intensity import tone_curve
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.masks import MaskChange, MaskDeformer
from nnunetv2_genseg.synthesis.pairs import Pairs, blank_as_before
from nnunetv2_genseg.synthesis.policy import Policy


@dataclass(frozen=True)
class SourceContext:
    """What all pair sources of a training share."""

    config: GenSegConfig
    plan: NetworkPlan
    codec: LabelCodec
    image_channels: int
    masked_channels: Tensor | None
    """(image_channels,) booleans: channels that are 0 outside of the subject; None: no channel is."""
    deformer: MaskDeformer
    policy: Policy
    device: torch.device
    synchronise: Callable[[Iterable[Tensor]], None] = lambda tensors: None
    """Averages tensors over the processes of a distributed training, in place."""

    def normal(self, shape: Sequence[int], rng: torch.Generator) -> Tensor:
        """Standard normal noise of a shape (B, ...), on the device of `rng`: independent for every patch."""
        return torch.randn(tuple(shape), generator=rng, device=rng.device)

    def toned(self, drawn: Tensor, width: Tensor | float, rng: torch.Generator) -> Tensor:
        """Images, (B, C, *spatial), whose intensities follow a new tone curve for every patch; see `tone_curve`."""
        return tone_curve(drawn, width, rng)

    def finished(self, drawn: Tensor, image: Tensor, change: MaskChange, rng: torch.Generator) -> Pairs:
        """The last steps of every source: the tone curve, and what is blank stays blank.

        Args:
            drawn: (B, C, *spatial) synthetic images.
            image: (B, C, *spatial) the real ones.
            change: how their masks changed.
            rng: on their device.
        """
        if self.config.intensity.tone:
            drawn = self.toned(drawn, self.policy.style * self.config.intensity.tone, rng)
        return Pairs(blank_as_before(drawn, image, change, self.masked_channels), change.deformed(), change.grid, change.accepted)


class PairSource(Protocol):
    """Makes a synthetic pair from each real patch."""

    @property
    def generator(self) -> Generator | None:
        """What draws images, and can be tuned by the feedback; None for a source without one."""

    @property
    def shows_generator(self) -> bool:
        """Whether pairs can depend on what the generator draws."""

    def training_step(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Learns from real patches, (B, C, *spatial) and (B, *spatial); the losses by name, without graph.

        The name `finite` is 0 if a gradient was not finite, on any process.
        """

    def sample(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> Pairs:
        """One synthetic pair for each real patch, (B, C, *spatial) and (B, *spatial) int64.

        With graph to the generator's parameters and the policy's style factor.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs: tensors, numbers, strings, lists and dictionaries only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, whose tensors may come from another device."""


def merged_losses(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses of several that learn, by name; `finite` is 0 if it is for one of them."""
    losses: dict[str, Tensor] = {}
    flags = []
    for part in parts:
        losses |= part
        if "finite" in part:
            flags.append(part["finite"].float())
    return losses | ({"finite": torch.stack(flags).amin()} if flags else {})


PAIR_SOURCES: Registry[Callable[[SourceContext], PairSource]] = Registry("mixing.sources", __package__ or "")
