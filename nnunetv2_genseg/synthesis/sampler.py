"""Which patches of a batch become synthetic, and from which source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.config import GenSegConfig
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.masks import MaskDeformer
from nnunetv2_genseg.synthesis.pairs import Pairs, not_changed, replaced_where, slot_index
from nnunetv2_genseg.synthesis.paster import Paster
from nnunetv2_genseg.synthesis.pasting import PasteContext
from nnunetv2_genseg.synthesis.policy import Policy
from nnunetv2_genseg.synthesis.preference import Preference
from nnunetv2_genseg.synthesis.sources import PAIR_SOURCES, PairSource, SourceContext, merged_losses

BRIGHTEST = 100.0
"""Largest intensity of synthetic images relative to the real ones: what is beyond could overflow the segmentation network."""


@dataclass(frozen=True)
class Replacement:
    """Synthetic pairs and the slots of the batch that they take."""

    slots: list[int]
    """Index in the batch of each pair."""
    pairs: Pairs
    finite: Tensor
    """0-d, 1 if all images were finite and not far brighter than the real ones; the others are the real patches."""
    measured: dict[str, Tensor]
    """0-d values for the log, by name."""


class PairSampler:
    """Owns the pair sources and what they share.

    Args:
        config: all settings.
        plan: the segmentation network's plan.
        codec: the dataset's classes.
        image_channels: channels of the image.
        device: where everything lives.
        masked_channels: indices of image channels that are 0 outside of the subject.
        synchronise: averages tensors over the processes of a distributed training, in place.

    Raises:
        GenSegError: a setting names a source, mode, mask source or generator that is not registered.
    """

    def __init__(
        self,
        config: GenSegConfig,
        plan: NetworkPlan,
        codec: LabelCodec,
        image_channels: int,
        device: torch.device,
        masked_channels: Sequence[int] = (),
        synchronise: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
    ) -> None:
        self.config = config
        self.policy = Policy().to(device)
        self.deformer = MaskDeformer(config.deformation, codec, plan.movable_axes, device)
        masked = torch.tensor([i in masked_channels for i in range(image_channels)], device=device)
        context = SourceContext(
            config,
            plan,
            codec,
            image_channels,
            masked if masked_channels else None,
            self.deformer,
            self.policy,
            device,
            synchronise,
        )
        self.paster = Paster(config.paste, PasteContext(codec, config.deformation, plan.movable_axes))
        self.preference: Preference | None = None
        """Which pairs reviewers prefer; None if there is no judgement."""
        self.sources: dict[str, PairSource] = {name: PAIR_SOURCES[name](context) for name in sorted(config.mixing.sources)}

    def choose(self, count: int, share: float, rng: torch.Generator) -> dict[str, list[int]]:
        """The slots of a batch that become synthetic, by source.

        Args:
            count: patches of the batch.
            share: probability of each to become synthetic.
            rng: on the CPU, so that nothing waits for the device.
        """
        drawn = (torch.rand(count, generator=rng) < share).tolist()
        names = list(self.sources)
        weights = torch.tensor([self.config.mixing.sources[name] for name in names])
        which = torch.multinomial(weights, count, replacement=True, generator=rng).tolist()
        slots = {name: [i for i in range(count) if drawn[i] and which[i] == k] for k, name in enumerate(names)}
        return {name: chosen for name, chosen in slots.items() if chosen}

    def replace(self, image: Tensor, labels: Tensor, chosen: dict[str, list[int]], rng: torch.Generator) -> Replacement:
        """Synthetic pairs for some slots of a batch, each made from the slot's own patch.

        Args:
            image: (B, C, *spatial) the batch's images.
            labels: (B, *spatial) int64 their class maps.
            chosen: slots by source, at least one.
            rng: on their device.
        """
        slots = [slot for chosen_slots in chosen.values() for slot in chosen_slots]
        parts = []
        for name, own_slots in chosen.items():
            index = slot_index(own_slots, image.device)
            parts.append(self.sources[name].sample(image.index_select(0, index), labels.index_select(0, index), rng))
        pairs, index = Pairs.joined(parts), slot_index(slots, image.device)
        good = pairs.image.abs().flatten(1).amax(dim=1) <= BRIGHTEST * image.abs().amax().clamp(min=1)  # False for NaN
        real = not_changed(image.index_select(0, index), labels.index_select(0, index))
        pairs = replaced_where(good, pairs, real)
        return Replacement(slots, pairs, good.all().float(), {"acceptance_rate": pairs.accepted.float().mean()})

    def replace_as_preferred(
        self, image: Tensor, labels: Tensor, chosen: dict[str, list[int]], rng: torch.Generator
    ) -> Replacement:
        """As `replace`. A pair that the preference does not keep is drawn once more; if that is not kept either, the patch stays.

        Both are always drawn: to ask first which are kept would make the host wait for the device.
        """
        first = self.replace(image, labels, chosen, rng)
        if self.preference is None:
            return first
        second, index = self.replace(image, labels, chosen, rng), slot_index(first.slots, image.device)
        kept = [self.preference.keeps(drawn.pairs.image, drawn.pairs.labels, rng) for drawn in (first, second)]
        real = not_changed(image.index_select(0, index), labels.index_select(0, index))
        pairs = replaced_where(kept[0], first.pairs, replaced_where(kept[1], second.pairs, real))
        measured = {"acceptance_rate": (first.measured["acceptance_rate"] + second.measured["acceptance_rate"]) / 2}
        measured["preferred"] = torch.cat(kept).float().mean()
        return Replacement(first.slots, pairs, torch.minimum(first.finite, second.finite), measured)

    def observe(self, labels: Tensor) -> None:
        """Records what bounds the masks of synthetic pairs; (B, *spatial) int64 real class maps."""
        self.deformer.observe(labels)

    def training_step(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """One step of everything that learns from real patches; the losses by name, and `finite` (see `PairSource`)."""
        return merged_losses(source.training_step(image, labels, rng) for source in self.sources.values())

    def state_dict(self) -> dict[str, Any]:
        """Policy, bounds and sources."""
        return {
            "policy": dict(self.policy.state_dict()),
            "deformer": self.deformer.state_dict(),
            "sources": {name: source.state_dict() for name, source in self.sources.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.deformer.load_state_dict(state["deformer"])
        for name, source in self.sources.items():
            source.load_state_dict(state["sources"][name])
