"""Draws pairs one after another and puts their files in place."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nnunetv2_genseg.config import GenSegFileError
from nnunetv2_genseg.files.atomic import PARTIAL, put_in_place
from nnunetv2_genseg.trainers.gate import Gate
from nnunetv2_genseg.trainers.given_masks import GivenMasks
from nnunetv2_genseg.trainers.provenance import IMAGES, LABELS, Provenance
from nnunetv2_genseg.trainers.raw_cases import RawCase
from nnunetv2_genseg.trainers.raw_formats import write_images, write_mask
from nnunetv2_genseg.trainers.trained_generator import Origin
from nnunetv2_genseg.trainers.whole_pairs import WholePairs

NAME = "synthetic_{:05d}"
"""Of a pair, with its number from 0 on."""
NAMED = re.compile(r"synthetic_\d{5,}(_\d{4})?\.\w[\w.]*")
"""Names of the files of pairs."""


class PairFiles:
    """Draws pairs and puts their files in place.

    Args:
        output: their folder.
        seed: of all draws.
        whole: draws.
        record: is told of each complete pair.
        generator: what draws for the source `redraw`.
        say: tells the user.
        masks: for which images are drawn; None: deformed real ones.
        gate: which pairs are drawn again; None: none.
    """

    def __init__(
        self,
        output: Path,
        seed: int,
        whole: WholePairs,
        record: Provenance,
        generator: Origin | None,
        say: Callable[[str], None],
        masks: GivenMasks | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.output = output
        self.seed = seed
        self.whole = whole
        self.record = record
        self.generator = generator
        self.say = say
        self.masks = masks
        self.gate = gate
        self._read: RawCase | None = None
        self._told: set[int] = set()
        """Channels of which was said that their intensities are an approximation."""

    def pair(self, k: int) -> None:
        """Draws and writes pair number `k`.

        Raises:
            GenSegFileError: a file cannot be written; nothing of this pair is left.
        """
        name, cases = NAME.format(k), self.whole.cases
        chosen, source, seed = self._plan(k)
        if self._read is None or self._read.name != chosen:
            self._read = cases.read(chosen)
        case, wanted, mask = (self._read, None, None) if self.masks is None else self.masks.fitted(self._read, k)
        (image, labels, new), seed, judged = self._drawn(k, case, source, seed, wanted)
        partial = self.output / f"{name}{PARTIAL}"
        try:
            files = self._files(partial, name, case, image, labels)
            for file in files:
                put_in_place(partial / file, self.output / file)
        except (OSError, RuntimeError) as error:
            raise GenSegFileError(
                f"could not write pair {name} into {self.output}: {error}. Complete pairs stay; free space or correct "
                "the permissions and start the same command again"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        redrawn = self.whole.sources[source].generator is not None
        approximate = [c for c, line in enumerate(self._read.lines) if redrawn and not line.straight]
        self._tell(approximate)
        drawn_by = None if self.generator is None or not redrawn else self.generator.sha256 or self.generator.family
        pair: dict[str, Any] = {"cases": [chosen], "source": source, "seed": seed, "generator": drawn_by, "new_mask": new}
        pair |= {"approximate_channels": approximate} if approximate else {}
        pair |= {"mask": mask} if mask is not None else {}
        pair |= judged
        self.record.add(name, pair, files)

    def _drawn(
        self, k: int, case: RawCase, source: str, seed: int, wanted: Tensor | None
    ) -> tuple[tuple[Any, Any, bool], int, dict[str, Any]]:
        """Pair number `k` as `WholePairs.sample` gives it, its seed, and what the gate says of it.

        It is the first that passes the gate, or else the best one.
        """
        drawn = self.whole.sample(case, source, seed, wanted)
        if self.gate is None:
            return drawn, seed, {}
        best = self.gate.scores(*drawn[:2], case.properties)
        chosen, draws = seed, 1
        while not best.passed and draws <= self.gate.redraws:
            again = int(np.random.default_rng([self.seed, k, draws]).integers(2**62))
            other = self.whole.sample(case, source, again, wanted)
            scores = self.gate.scores(*other[:2], case.properties)
            draws += 1
            if scores.rank > best.rank:
                drawn, best, chosen = other, scores, again
        self.gate.again += draws > 1
        self.gate.failed += not best.passed
        return drawn, chosen, {"gate": {**best.to_json(), "draws": draws}}

    def _tell(self, approximate: Sequence[int]) -> None:
        for c in sorted(set(approximate) - self._told):
            scheme = self.whole.cases.configuration.normalization_schemes[c]
            self.say(
                f"{scheme} of channel {c} is no straight line; intensities that a generator draws are put on the nearest line"
            )
        self._told.update(approximate)

    def remove_others(self) -> None:
        """Removes files of pairs that are not recorded as complete: a run that was killed may have left some."""
        known = {file for pair in self.record.pairs.values() for file in pair["files"]}
        for part in (IMAGES, LABELS):
            for path in (self.output / part).iterdir():
                if NAMED.fullmatch(path.name) and f"{part}/{path.name}" not in known:
                    path.unlink()

    def _plan(self, k: int) -> tuple[str, str, int]:
        """Source case, pair source and seed of pair number `k`."""
        names = sorted(self.whole.cases.files)
        weights = self.whole.weights()
        rng = np.random.default_rng([self.seed, k])
        source = str(rng.choice(list(weights), p=list(weights.values())))
        return case_of(k, self.seed, names), source, int(rng.integers(2**62))

    def _files(self, folder: Path, name: str, case: RawCase, image: Any, labels: Any) -> list[str]:
        """Writes the files of a pair below a folder; their paths relative to it, the label file last."""
        cases = self.whole.cases
        for part in (IMAGES, LABELS):
            (folder / part).mkdir(parents=True)
        targets = [folder / IMAGES / f"{name}_{i:04d}{cases.ending}" for i in range(len(case.files))]
        write_images(image, targets, case.files, cases.reader, case.properties)
        write_mask(labels, folder / LABELS / f"{name}{cases.ending}", cases.reader, case.properties)
        written = [part / path.name for part in (Path(IMAGES), Path(LABELS)) for path in sorted((folder / part).iterdir())]
        return [str(path) for path in written]


def case_of(k: int, seed: int, names: Sequence[str]) -> str:
    """The source case of pair number `k`: all cases equally often, in another order in each round."""
    turn, place = divmod(k, len(names))
    return names[int(np.random.default_rng([seed, turn, len(names)]).permutation(len(names))[place])]
