"""Pairs chosen by cases that no training may see: the most that choosing pairs by their value could gain.

Of several drawings of each pair the one is trained on whose gradient agrees most with that of the validation part's cases, of
which the labels are given. To a step's first order this is the true value of `pair_values.py`.
"""

from __future__ import annotations

from typing import Any

from cells import Cell
from pair_judge import PairJudge, product, validation_patches
from preparing import Place

CANDIDATES = 4
"""Drawings of each pair, with sources and pasted parts of their own."""
PATCHES = 16
"""Of the validation part's cases, drawn anew for each gradient."""
INTERVAL = 4
"""Batches with pairs that a gradient serves."""


def choose_pairs(trainer: Any, cell: Cell, place: Place) -> None:
    """Makes a GenSeg trainer, not initialised, choose its pairs so."""
    trainer.initialize()
    trainer.loop.sample = Oracle(trainer, *validation_patches(trainer, cell, place), cell.seed).sample


class Oracle:
    """Chooses the pairs of a trainer's batches.

    Args:
        trainer: initialised.
        image: (B, C, *spatial) patches of the cases that it chooses by.
        labels: (B, *spatial) int64 their class maps.
        seed: of what is drawn.
    """

    def __init__(self, trainer: Any, image: Any, labels: Any, seed: int) -> None:
        import torch

        self.loop, self.judge = trainer.loop, PairJudge(trainer)
        self.image, self.labels = image.to(trainer.device), labels.to(trainer.device)
        self.rng = torch.Generator().manual_seed(seed)
        self.draw, self.batches = self.loop.sample, 0
        self.direction: list[Any] = []

    def sample(self, image: Any, labels: Any, cases: Any, chosen: dict[str, list[int]]) -> Any:
        """As the loop's own `sample`, with the best of several drawings in each slot."""
        import torch

        from nnunetv2_genseg.synthesis.pairs import Pairs
        from nnunetv2_genseg.synthesis.sampler import Replacement

        first = self.draw(image, labels, cases, chosen)
        if first is None:
            return None
        drawn = [first, *(self._again(first.slots, image, labels, cases) for _ in range(CANDIDATES - 1))]
        best: dict[int, tuple[float, Pairs]] = {}
        with torch.enable_grad():
            if self.batches % INTERVAL == 0:
                index = torch.randperm(len(self.image), generator=self.rng)[:PATCHES].to(self.image.device)
                self.direction = self.judge.gradient(self.image[index], self.labels[index])
            for replacement in drawn:
                pairs = replacement.pairs
                for i, slot in enumerate(replacement.slots):
                    own = Pairs(*(part[i : i + 1] for part in (pairs.image, pairs.labels, pairs.grid, pairs.accepted)))
                    value = product(self.judge.gradient(own.image, own.labels), self.direction)
                    if slot not in best or value > best[slot][0]:
                        best[slot] = value, own
        self.batches += 1
        return Replacement(first.slots, Pairs.joined([best[slot][1] for slot in first.slots]), first.finite, first.measured)

    def _again(self, slots: list[int], image: Any, labels: Any, cases: Any) -> Any:
        """Another drawing for the slots, with sources of its own."""
        import torch

        sampler, rng = self.loop.sampler, self.loop.rng
        with torch.no_grad():
            if cases is not None:
                image, labels = sampler.paster.paste(image, labels, cases, slots, rng, self.loop.slot_rng)
            sources = sampler.choose(len(slots), 1.0, self.loop.slot_rng)
            return sampler.replace(image, labels, {name: [slots[i] for i in own] for name, own in sources.items()}, rng)
