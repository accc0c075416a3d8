"""A look at synthetic pairs before any training: pictures of a preprocessed dataset's patches, and an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.config import GenSegConfig, GenSegError
from nnunetv2_genseg.plots.page import Section, write_page
from nnunetv2_genseg.plots.samples import save_samples
from nnunetv2_genseg.synthesis.pairs import Pairs
from nnunetv2_genseg.trainers import standalone
from nnunetv2_genseg.trainers.building import start_from_pretrained

PAGE = "index.html"
OBSERVED = 4
"""Batches whose masks set the bounds of new ones, before pairs are drawn."""


@dataclass(frozen=True)
class Preview(standalone.Standalone):
    """What is shown of what."""

    pairs: int
    """Pairs of each source."""


def preview(settings: Preview) -> Path:
    """Draws pairs of every source that can be shown without a training; returns the page.

    Pairs that a generator draws are shown if it has nothing to learn, or if `generator.pretrained` names a trained one. Else the
    page says why they are not: what a generator with random weights draws is not what a training will see.

    Raises:
        GenSegError: the dataset or the settings do not allow it; nothing was written.
        FileNotFoundError: the dataset was not planned or preprocessed.
    """
    if settings.pairs < 1:
        raise GenSegError(f"--pairs must be 1 or more, found {settings.pairs}")
    standalone.require_writable(settings.output)
    with TemporaryDirectory(prefix="genseg_preview_") as temporary, standalone.writing_to(temporary, nnUNet_n_proc_DA="0"):
        trainer = standalone.build(settings, PreviewMixin)
        page: Path = trainer.preview(settings)
        return page


class PreviewMixin(standalone.StandaloneMixin):
    """Makes a GenSeg trainer draw pairs and nothing else."""

    def preview(self, settings: Preview) -> Path:
        """Writes the pictures and the page; returns its path."""
        asked = self.genseg
        self.prepare()
        sources, trained = self.loop.sampler.sources, asked.generator.pretrained is not None
        shown = [name for name, source in sources.items() if trained or not _must_learn(source.generator)]
        image, labels, cases = self._patches(settings.pairs, shown)
        if trained:
            start_from_pretrained(self)
        settings.output.mkdir(parents=True, exist_ok=True)
        sections = [
            self._drawn(name, image, labels, cases, settings.output) if name in shown else Section(name, _learns(name, asked))
            for name in sources
        ]
        heading = f"{self.plans_manager.dataset_name}, {self.configuration_name}, {settings.trainer}"
        return write_page(settings.output / PAGE, heading, _remarks(asked), sections, changed(asked))

    def _patches(self, count: int, shown: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
        """Patches as nnU-Net's loader gives them to a training, those with labels first, and their cases.

        The sampler observes them and keeps the last ones as donors, and the sources that are shown measure their intensities.
        """
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        batches = [self._batches.parts(next(self.dataloader_train)) for _ in range(max(OBSERVED, -(-count // self.batch_size)))]
        for parts in batches:
            self.loop.sampler.observe(parts.labels)
            self.loop.sampler.paster.remember(parts.image, parts.labels, parts.cases or [])
            for name in shown:
                self.loop.sampler.sources[name].training_step(parts.image, parts.labels, self.loop.rng)
        image, labels = (torch.cat([getattr(parts, name) for parts in batches]) for name in ("image", "labels"))
        first = (labels > 0).flatten(1).any(dim=1).int().argsort(descending=True, stable=True)[:count]
        cases = [case for parts in batches for case in parts.cases or [""] * len(parts.labels)]
        return image[first], labels[first], [cases[i] for i in first.tolist()]

    @torch.no_grad()
    def _drawn(self, name: str, image: Tensor, labels: Tensor, cases: list[str], folder: Path) -> Section:
        """The pairs of a source as a picture, and how many masks are new."""
        slots, sampler, rng = list(range(len(image))), self.loop.sampler, self.loop.rng
        with_parts = sampler.paster.paste(image, labels, cases, slots, rng, self.loop.slot_rng)
        pairs: Pairs = sampler.replace(*with_parts, {name: slots}, rng).pairs
        picture = folder / f"{name}.png"
        foreground = self.loop.codec.foreground
        save_samples(picture, image, labels, pairs.image, pairs.labels, foreground, f"pairs of the source {name}")
        new = int(pairs.accepted.sum())
        kept = (
            f"{new} of {len(image)} masks are new. The others were too large or too small, compared with the patches seen so "
            "far, so that the pair keeps its real mask. A training sees more patches, so fewer pairs keep theirs."
        )
        return Section(name, kept if new < len(image) else "All masks are new.", picture)


def _must_learn(generator: Any) -> bool:
    return generator is not None and bool(generator.weights())


def _learns(name: str, config: GenSegConfig) -> str:
    return (
        f"Not shown: the generator ({config.generator.name}) of {name} is untrained, and learns during the training. The fold "
        "folder of a training holds genseg_samples.png with its pairs. To see pairs here, train a generator alone (genseg "
        "pretrain), and name its folder: --set generator.pretrained=FOLDER."
    )


def _remarks(config: GenSegConfig) -> list[str]:
    remarks = [
        "Each row is one pair. The real patch comes from nnU-Net's loader, after nnU-Net's own augmentation, as in a training. "
        "Pictures of volumes show the slice with most labelled voxels.",
    ]
    if config.paste.probability > 0:
        remarks.append(
            f"Into each patch, with the probability {config.paste.probability:g}, a part of another case was pasted before."
        )
    if config.masks.source != "real":
        remarks.append(f"masks.source is {config.masks.source}, which learns during the training: here the masks are real ones.")
    return remarks


def changed(config: GenSegConfig) -> dict[str, str]:
    """The settings that are not the defaults."""
    usual = GenSegConfig().flat()
    return {name: str(value) for name, value in config.flat().items() if name not in usual or usual[name] != value}
