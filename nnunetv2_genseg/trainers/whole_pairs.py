"""Draws a pair of a whole raw case with the sources of a training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nnunetv2_genseg.config import GenSegConfig, GenSegError
from nnunetv2_genseg.synthesis.policy import Policy
from nnunetv2_genseg.synthesis.sources import PAIR_SOURCES, PairSource
from nnunetv2_genseg.synthesis.sources.redraw import RedrawSource
from nnunetv2_genseg.synthesis.spatial import identity_grid, warp_image, warp_labels
from nnunetv2_genseg.synthesis.whole_images import GivenMask, WholeImageContext, WholeImageDeformer, as_batch, as_volume
from nnunetv2_genseg.trainers.planning import image_kind, network_plan
from nnunetv2_genseg.trainers.raw_cases import Array, RawCase, RawCases
from nnunetv2_genseg.trainers.tiling import for_whole_images


class WholePairs:
    """Makes pairs of whole cases.

    A source without a generator works at the case's own resolution, so that nothing is resampled. What a generator draws is
    resampled from the resolution of the plans. In a mode that adds a change to the real image, only the change is: the image
    itself keeps its details, and intensities that the normalisation clips.

    Args:
        trainer: a GenSeg trainer of nnU-Net; it is read alone.
        cases: the raw cases.
        config: settings of the sources, with the feedback of the training whose generator is to be loaded: what the feedback
            moves is no part of the generator's own optimiser.
    """

    def __init__(self, trainer: Any, cases: RawCases, config: GenSegConfig) -> None:
        self.cases = cases
        self.device: torch.device = trainer.device
        plan = network_plan(trainer.configuration_manager)
        kind = image_kind(trainer.dataset_json, trainer.configuration_manager)
        self.patch_size = plan.patch_size
        self.flat = len(plan.patch_size) == 2
        self.deformer = WholeImageDeformer(config.deformation, cases.codec, plan.movable_axes, self.device)
        context = WholeImageContext(
            config,
            plan,
            cases.codec,
            len(kind.channels),
            torch.tensor(kind.masked, device=self.device) if any(kind.masked) else None,
            self.deformer,
            Policy().to(self.device).requires_grad_(False),
            self.device,
        )
        self._weights = {name: weight for name, weight in sorted(config.mixing.sources.items()) if weight > 0}
        self.sources: dict[str, PairSource] = {name: PAIR_SOURCES[name](context) for name in self._weights}
        self.given: GivenMask | None = None
        """Gives the masks that images are drawn for; None: masks are deformed real ones."""
        self.largest = torch.zeros(cases.codec.classes, dtype=torch.float64)
        """(classes,) largest volume of every class in a case, mm³."""

    def observe(self, labels: Tensor, spacing: tuple[float, ...]) -> None:
        """Records the volumes of the classes in a real case, (*spatial) labels, spacing in mm."""
        counts = torch.bincount(labels.flatten(), minlength=len(self.largest)).double()
        self.largest = torch.maximum(self.largest, counts * torch.tensor(spacing, dtype=torch.float64).prod())

    def measure(self, image: Array, labels: Tensor, slices: int) -> None:
        """Measures how much a preprocessed case varies, for a generator that no training of the fold has measured it for.

        Args:
            image: (C, *spatial).
            labels: (*spatial) int64 class map.
            slices: with 2D plans so many of a volume are measured, evenly spread over those with foreground.
        """
        batch = self._batch(torch.from_numpy(np.ascontiguousarray(image)).float())
        masks = self._label_batch(labels)
        kept = spread_slices(self.cases.codec.is_foreground(masks), slices)
        for source in self.sources.values():
            if not isinstance(source, RedrawSource):
                continue
            if source.generator.weights():
                source.observe(batch[kept], masks[kept])
            else:  # what it measures is all that it learns
                source.learn(batch[kept], masks[kept], torch.Generator(self.device).manual_seed(0))

    def weights(self) -> dict[str, float]:
        """How likely each source is."""
        total = sum(self._weights[name] for name in self.sources)
        return {name: self._weights[name] / total for name in self.sources}

    def give_masks(self) -> None:
        """Makes generators draw for given masks, from now on; other sources are left out."""
        self.given = GivenMask()
        self.deformer.still = True
        self.sources = {name: source for name, source in self.sources.items() if isinstance(source, RedrawSource)}
        for source in self.sources.values():
            assert isinstance(source, RedrawSource)
            source.masks = self.given

    def tile(self) -> None:
        """Makes generators draw images larger or smaller than their patch, from now on."""
        for source in self.sources.values():
            if isinstance(source, RedrawSource):
                source.generator = for_whole_images(source.generator, self.patch_size)

    def _batch(self, volume: Tensor) -> Tensor:
        return as_batch(volume, self.flat).to(self.device)

    def _label_batch(self, volume: Tensor) -> Tensor:
        return self._batch(volume[None])[:, 0]

    @torch.no_grad()
    def sample(self, case: RawCase, name: str, seed: int, wanted: Tensor | None = None) -> tuple[Array, Array, bool]:
        """Draws a pair; equal arguments give equal pairs.

        Args:
            case: what it is made from.
            name: of the source.
            seed: of the draw.
            wanted: (*spatial) class map of the image to draw, which stays as it is (see `give_masks`); None: the real one is
                deformed.

        Returns:
            As `RawCases.original`, and whether the mask is new: it is not, if every deformation was out of bounds, or no voxel
            changed its class.

        Raises:
            GenSegError: an intensity is not finite.
        """
        rng, source = torch.Generator(self.device).manual_seed(seed), self.sources[name]
        image, labels = self._batch(case.image), self._label_batch(case.labels)
        if source.generator is None:
            self.deformer.begin(case.spacing, self.largest)
            pairs = source.sample(image, labels, rng)
            drawn, masks, grid = as_volume(pairs.image.cpu(), self.flat), pairs.labels, pairs.grid
        else:
            planned = self.cases.planned(case)
            small, small_labels = self._batch(planned[0]), self._label_batch(planned[1])
            self.deformer.begin(self.cases.planned_spacing(case), self.largest)
            if self.given is not None and wanted is not None:
                self.given.wanted = self._label_batch(self.cases.planned_labels(case, wanted))
            pairs = source.sample(small, small_labels, rng)
            grid = resized_grid(pairs.grid, tuple(labels.shape[1:]))
            adds = isinstance(source, RedrawSource) and source.mode.cancels
            change = pairs.image - warp_image(small, pairs.grid) if adds else pairs.image
            drawn = self.cases.at_own_resolution(case, as_volume(change.cpu(), self.flat))
            if adds:
                drawn = drawn + as_volume(warp_image(image, grid).cpu(), self.flat)
            masks = warp_labels(labels if wanted is None else self._label_batch(wanted), grid)
        if not bool(drawn.isfinite().all()):
            raise GenSegError(
                f"the source {name} draws intensities that are not finite from case {case.name}; use another generator"
            )
        outside = warp_labels(self._label_batch(case.outside.long()), grid)
        flattened = [as_volume(maps[:, None].cpu(), self.flat)[0] for maps in (masks, outside)]
        written = self.cases.original(case, drawn, flattened[0], flattened[1].bool())
        return *written, not torch.equal(masks, labels)


def spread_slices(foreground: Tensor, most: int) -> Tensor:
    """The places of at most so many slices, evenly spread over those with foreground, or over all; (B, *spatial) booleans."""
    shown = foreground.flatten(1).any(dim=1).nonzero().flatten()
    places = shown if len(shown) else torch.arange(len(foreground), device=foreground.device)
    count = min(most, len(places))
    return places[((torch.arange(count, device=places.device) + 0.5) * len(places) / count).long()]


def resized_grid(grid: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """(B, *spatial, dims) sampling positions of a deformation for the same images at another resolution."""
    if tuple(grid.shape[1:-1]) == spatial:
        return grid
    displacement = (grid - identity_grid(grid.shape[1:-1], grid.device)).movedim(-1, 1)
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    resized = functional.interpolate(displacement, size=spatial, mode=mode, align_corners=False)
    return identity_grid(spatial, grid.device) + resized.movedim(1, -1)
