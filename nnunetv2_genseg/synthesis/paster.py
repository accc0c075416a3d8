"""Pastes parts of other cases into real patches before pairs are made from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.config import PasteConfig
from nnunetv2_genseg.synthesis.pairs import constant_channels, slot_index
from nnunetv2_genseg.synthesis.pasting import PASTES, PasteContext

CAPACITY = 8
"""Real patches that are kept as donors."""


class Paster:
    """Keeps the latest real patches and pastes parts of them into patches of other cases.

    Args:
        config: how often and in which ways.
        context: what the ways share.

    Raises:
        GenSegError: a setting names a way that is not registered.
    """

    def __init__(self, config: PasteConfig, context: PasteContext) -> None:
        self.config = config
        self.context = context
        self.kinds = {name: PASTES[name](context) for name in sorted(config.kinds)}
        self.donors: deque[tuple[str, Tensor, Tensor]] = deque(maxlen=CAPACITY)
        """Case, (C, *spatial) image and (*spatial) int16 class map of each, on the device."""

    def remember(self, image: Tensor, labels: Tensor, cases: Sequence[str]) -> None:
        """Keeps real patches, (B, C, *spatial) and (B, *spatial), of the cases named, as donors of later calls too."""
        if self.config.probability > 0:
            latest = range(max(0, len(cases) - CAPACITY), len(cases))
            self.donors.extend((str(cases[i]), image[i].clone(), labels[i].short()) for i in latest)

    def paste(
        self,
        image: Tensor,
        labels: Tensor,
        cases: Sequence[str],
        slots: Sequence[int],
        rng: torch.Generator,
        slot_rng: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Pastes into some patches of a batch, each with the configured probability.

        Args:
            image: (B, C, *spatial) real images.
            labels: (B, *spatial) int64 their class maps.
            cases: the case of each patch; no patch gets a part of its own case.
            slots: the patches that may change.
            rng: on their device.
            slot_rng: on the CPU, so that nothing waits for the device.

        Returns:
            Images and class maps as above.
        """
        for name, chosen in self._choose(cases, slots, slot_rng).items():
            own = slot_index([slot for slot, _ in chosen], image.device)
            donors = [self.donors[place] for _, place in chosen]
            donor = (torch.stack([part[1] for part in donors]), torch.stack([part[2] for part in donors]).long())
            changed = pasted(image.index_select(0, own), labels.index_select(0, own), *self.kinds[name](*donor, rng))
            image, labels = image.index_copy(0, own, changed[0]), labels.index_copy(0, own, changed[1])
        return image, labels

    def _choose(self, cases: Sequence[str], slots: Sequence[int], rng: torch.Generator) -> dict[str, list[tuple[int, int]]]:
        """Slots and places of their donors, by kind."""
        chosen: dict[str, list[tuple[int, int]]] = {}
        names, weights = list(self.kinds), torch.tensor([self.config.kinds[name] for name in self.kinds])
        for slot in slots:
            others = [place for place, donor in enumerate(self.donors) if donor[0] != cases[slot]]
            drawn, place = torch.rand(2, generator=rng).tolist()
            name = names[int(torch.multinomial(weights, 1, generator=rng))]
            if others and drawn < self.config.probability:
                chosen.setdefault(name, []).append((slot, others[int(place * len(others))]))
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """The donors and the free classes."""
        return {"donors": [list(donor) for donor in self.donors], "free_classes": list(self.context.free_classes)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of `state_dict`, whose tensors may come from another device."""
        self.context.free_classes = tuple(state["free_classes"])
        self.donors.clear()
        self.donors.extend((case, image.to(device), labels.to(device)) for case, image, labels in state["donors"])


def pasted(image: Tensor, labels: Tensor, donor_image: Tensor, donor_labels: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Patches with a part of their donors at the same place.

    Nothing is pasted where receiver and donor are not constant in the same channels: a modality that one of the two cases
    lacks would show the part.

    Args:
        image: (B, C, *spatial) the receivers.
        labels: (B, *spatial) int64.
        donor_image: (B, C, *spatial).
        donor_labels: (B, *spatial) int64.
        part: (B, *spatial) booleans: the voxels that are pasted.

    Returns:
        (B, C, *spatial) images and (B, *spatial) class maps. A constant channel stays as it is.
    """
    constant = constant_channels(image)
    part = part & (constant == constant_channels(donor_image)).all(dim=1)
    return torch.where(part[:, None] & ~constant, donor_image, image), torch.where(part, donor_labels, labels)
