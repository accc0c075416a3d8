"""What pairs are made with, in a form that a file can hold, and a kept generator that pairs are made with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.checkpoint import first_difference
from nnunetv2_genseg.config import GenSegConfig, GenSegError, Settings, checked, merged
from nnunetv2_genseg.config.reading import in_form, read_json
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.generators.pretrained import CONFIG, ImageKind, identity, load_pretrained
from nnunetv2_genseg.synthesis.label_table import LabelTable
from nnunetv2_genseg.synthesis.sampler import PairSampler
from nnunetv2_genseg.synthesis.sources.redraw import RedrawSource

PAIRS = "pairs"
"""Key of `config.json` in a folder of a kept generator: a `KeptPairs`."""


@dataclass(frozen=True)
class PairDescription:
    """What pairs are made with, but for what was learned."""

    settings: dict[str, Any]
    """Of the training, as in its configuration file."""
    plan: NetworkPlan
    images: ImageKind
    """What images are expected, and drawn."""
    labels: LabelTable
    axes: tuple[int, ...]
    """For each axis of the patch, the axis of an image that is indexed (x, y[, z])."""

    def sampler(self, device: torch.device, changed: Settings | None) -> PairSampler:
        """What makes the pairs, untrained.

        Args:
            device: where it lives.
            changed: settings that differ from those of the training.

        Raises:
            GenSegError: a setting is not allowed.
        """
        config = checked(GenSegConfig, merged(self.settings, changed or {}), "settings of the training and those passed")
        masked = [i for i, masked in enumerate(self.images.masked) if masked]
        return PairSampler(config, self.plan, self.labels.codec, len(self.images.channels), device, masked)


@dataclass(frozen=True)
class KeptPairs(PairDescription):
    """A description with what was measured of the real patches."""

    deviation: tuple[float, ...]
    """Standard deviation of each channel within them."""
    largest: tuple[float, ...]
    """Most voxels of each class in one of them."""
    variation: dict[str, Any]
    """State of the source's `IntensityVariation`, its tensors as lists."""

    @staticmethod
    def of(description: PairDescription, sampler: PairSampler) -> KeptPairs:
        """What a sampler measured, whose source `redraw` has a generator."""
        source = sampler.sources["redraw"]
        assert isinstance(source, RedrawSource)
        parts = {name: getattr(description, name) for name in PairDescription.__dataclass_fields__}
        variation = source.variation.state_dict()
        return KeptPairs(
            **parts,
            deviation=tuple(source.deviation.flatten().tolist()),
            largest=tuple(sampler.deformer.largest.tolist()),
            variation={name: value.tolist() if isinstance(value, Tensor) else value for name, value in variation.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """For `config.json`."""
        return {PAIRS: asdict(self)}


def load_kept(folder: Path, device: torch.device, changed: Settings | None) -> tuple[PairDescription, PairSampler]:
    """What `genseg pretrain` wrote.

    Args:
        folder: of a kept generator.
        device: where the sampler lives.
        changed: settings that differ from those of its training.

    Raises:
        GenSegError: the folder holds no kept generator, or one of an older version, or it is damaged, or a setting does not fit.
    """
    content = read_json(folder / CONFIG, dict[str, Any], "a mapping")
    if PAIRS not in content:
        raise GenSegError(f"{folder / CONFIG} does not say how pairs are made; write the generator again with `genseg pretrain`")
    kept = in_form(content[PAIRS], KeptPairs, "a description of pairs", f"`{PAIRS}` in {folder / CONFIG}")
    sampler = kept.sampler(device, changed)
    source = sampler.sources.get("redraw")
    if isinstance(source, RedrawSource):
        load_pretrained(source.generator, folder, identity(sampler.config.generator, kept.plan, source.layout, kept.images))
        source.variance.copy_(torch.tensor(kept.deviation) ** 2)
        source.observed.fill_(1)
        _restore_variation(source, kept.variation, folder)
    sampler.deformer.largest.copy_(torch.tensor(kept.largest))
    return kept, sampler


def _restore_variation(source: RedrawSource, kept: dict[str, Any], folder: Path) -> None:
    place = f"`{PAIRS}.variation` in {folder / CONFIG}"
    state = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in kept.items()}
    if first_difference(source.variation.state_dict(), state) is not None:
        raise GenSegError(f"{place} does not fit the generator; restore the file, or write it again with `genseg pretrain`")
    source.variation.load_state_dict(state)
