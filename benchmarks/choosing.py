"""Pairs chosen by their value: of several drawings of each pair, the one whose gradient agrees most with that of real patches.

To a step's first order, agreement with cases is by how much a step on the pair lowers their loss, as in `pair_values.py`. Patches
of the validation part's cases, which no training may see, give the most that choosing could gain (the oracle); recent training
patches are what a training has.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from cells import Cell
from pair_judge import PairJudge, product, validation_patches
from preparing import Place

CANDIDATES = 4
"""Drawings of each pair, with sources and pasted parts of their own."""
PATCHES = 16
"""Real patches that give a gradient."""
INTERVAL = 4
"""Batches with pairs that a gradient serves."""


def choose_pairs(trainer: Any, by: str, cell: Cell, place: Place) -> None:
    """Makes a GenSeg trainer, not initialised, choose its pairs by `validation` or `training` patches."""
    trainer.initialize()
    known = validation_patches(trainer, cell, place) if by == "validation" else None
    trainer.loop.sample = Chooser(trainer, cell.seed, known).sample


class Chooser:
    """Chooses the pairs of a trainer's batches.

    Args:
        trainer: initialised.
        seed: of what is drawn.
        known: (B, C, *spatial) patches and (B, *spatial) int64 class maps of the cases that it chooses by; None: the latest
            training patches.
    """

    def __init__(self, trainer: Any, seed: int, known: tuple[Any, Any] | None) -> None:
        import torch

        self.loop, self.judge = trainer.loop, PairJudge(trainer)
        self.known = None if known is None else tuple(values.to(trainer.device) for values in known)
        self.latest: deque[tuple[Any, Any]] = deque(maxlen=PATCHES)
        self.rng = torch.Generator().manual_seed(seed)
        self.draw, self.batches = self.loop.sample, 0
        self.direction: list[Any] = []

    def sample(self, image: Any, labels: Any, cases: Any, chosen: dict[str, list[int]]) -> Any:
        """As the loop's own `sample`, with the best of several drawings in each slot."""
        import torch

        from nnunetv2_genseg.synthesis.pairs import Pairs
        from nnunetv2_genseg.synthesis.sampler import Replacement

        self.latest.extend(zip(image, labels, strict=True))
        first = self.draw(image, labels, cases, chosen)
        if first is None:
            return None
        drawn = [first, *(self._again(first.slots, image, labels, cases) for _ in range(CANDIDATES - 1))]
        best: dict[int, tuple[float, Pairs]] = {}
        with torch.enable_grad():
            if self.batches % INTERVAL == 0:
                self.direction = self.judge.gradient(*self._patches())
            for replacement in drawn:
                pairs = replacement.pairs
                for i, slot in enumerate(replacement.slots):
                    own = Pairs(*(part[i : i + 1] for part in (pairs.image, pairs.labels, pairs.grid, pairs.accepted)))
                    value = product(self.judge.gradient(own.image, own.labels), self.direction)
                    if slot not in best or value > best[slot][0]:
                        best[slot] = value, own
        self.batches += 1
        return Replacement(first.slots, Pairs.joined([best[slot][1] for slot in first.slots]), first.finite, first.measured)

    def _patches(self) -> tuple[Any, Any]:
        """Real patches and their class maps, at most `PATCHES`."""
        import torch

        if self.known is None:
            images, labels = zip(*self.latest, strict=True)
            return torch.stack(images), torch.stack(labels)
        index = torch.randperm(len(self.known[0]), generator=self.rng)[:PATCHES].to(self.known[0].device)
        return self.known[0][index], self.known[1][index]

    def _again(self, slots: list[int], image: Any, labels: Any, cases: Any) -> Any:
        """Another drawing for the slots, with sources of its own."""
        import torch

        sampler, rng = self.loop.sampler, self.loop.rng
        with torch.no_grad():
            if cases is not None:
                image, labels = sampler.paster.paste(image, labels, cases, slots, rng, self.loop.slot_rng)
            sources = sampler.choose(len(slots), 1.0, self.loop.slot_rng)
            return sampler.replace(image, labels, {name: [slots[i] for i in own] for name, own in sources.items()}, rng)
