"""How a synthetic pair is drawn from a real one: a new mask, its condition, and an image in one of four modes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_genseg import conditioning, masks
from nnunetv2_genseg.appearance import tone_curve
from nnunetv2_genseg.synthesis.conditioning import ConditionLayout
from nnunetv2_genseg.config import ConditioningConfig, MaskConfig
from nnunetv2_genseg.generators import Generator
from nnunetv2_genseg.labels import LabelCodec
from nnunetv2_genseg.synthesis.masks import MaskChange
from nnunetv2_genseg.policy import Policy
from nnunetv2_genseg.shapes import LearnedShapes
from nnunetv2_genseg.topology import TopologyBounds

STAYING = {"deformation": {"growth": 0.0}}
"""Changes of masks that a mode cannot show."""


COMMON_SHIFT = 0.75
"""Share of the variance of an intensity shift that all channels of an image have in common."""


@dataclass(frozen=True)
class Pairs:
    """Synthetic images and the masks that they were drawn from."""

    image: Tensor
    """(B, C, *spatial), in nnU-Net's normalised intensities."""
    labels: Tensor
    """(B, *spatial) int64 class maps."""
    kept: float
    """Fraction of the masks that were changed; the others would have left the dataset's bounds and are the real ones."""
    learned: float | None = None
    """Fraction of the masks with any structure whose shapes are new; None if no shapes are drawn or no mask has any."""


class PairSource:
    """Draws synthetic pairs, and the conditions of the real ones that the generator learns from.

    Args:
        codec: the dataset's classes.
        image_channels: channels of the image.
        conditioning_config: the mode and its settings.
        mask_config: how masks are changed.
        movable_axes: False for an axis along which masks are not deformed.
        device: where everything lives.
        masked_channels: channels that are 0 outside of the subject (nnU-Net's `use_mask_for_norm`), and stay so.
        shapes: draws new shapes of structures, if `mask_config` says so.
        synchronise: averages tensors over the processes of a distributed training, in place.

    Raises:
        ValueError: `mask_config.source` is `learned` without `shapes`.
    """

    def __init__(
        self,
        codec: LabelCodec,
        image_channels: int,
        conditioning_config: ConditioningConfig,
        mask_config: MaskConfig,
        movable_axes: tuple[bool, ...],
        device: torch.device,
        masked_channels: tuple[int, ...] = (),
        shapes: LearnedShapes | None = None,
        synchronise: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
    ) -> None:
        if (mask_config.source == "learned") != (shapes is not None):
            raise ValueError(f"masks.source is {mask_config.source!r}: shapes go with 'learned', and with it alone")
        self.codec = codec
        self.shapes = shapes
        self.config = conditioning_config
        self.mask_config = mask_config.model_copy(update=STAYING.get(conditioning_config.mode, {}))
        self.movable_axes = movable_axes
        tissues = conditioning_config.tissue_classes if conditioning_config.mode in ("tissue", "differential") else 0
        self.layout = ConditionLayout(codec.foreground, tissues, image_channels)
        self.masked_channels = torch.tensor([i in masked_channels for i in range(image_channels)], device=device)
        self.policy = Policy(codec.foreground).to(device)
        self.synchronise = synchronise
        self.variance = torch.zeros(image_channels, device=device)
        """(C,) variance within real patches, summed over the batches so far."""
        self.observed = torch.zeros(image_channels, device=device)
        """(C,) how many batches these are."""
        self.largest = torch.zeros(codec.classes, device=device)
        """(classes,) most voxels of every class in one real patch so far: the dataset's own bound on new masks."""
        self.topology = TopologyBounds(codec.foreground, device)
        """Components and holes in the real patches so far: the bounds on new shapes, kept if they are learned."""

    @property
    def shows_generator(self) -> bool:
        """Whether what the generator draws can differ between before and after a change: else `differential` cancels it."""
        changes = self.config.intensity_shift, self.mask_config.growth, self.mask_config.recombination, self.shapes
        return self.config.mode != "differential" or any(changes)

    @property
    def shows_policy(self) -> bool:
        """Whether pairs, or what they weigh, can depend on the policy: on its factors on style, deformation or classes."""
        drawn = self.needs_generator and self.shows_generator
        return drawn or self.config.tone > 0 or self.deforms or self.codec.foreground > 1

    @property
    def deforms(self) -> bool:
        """Whether anything depends on the policy's factor on the deformation."""
        return self.mask_config.elastic > 0 or self.shapes is not None

    @property
    def _frozen_class(self) -> int | None:
        return self.codec.foreground + 1 if self.codec.has_ignore else None

    @property
    def needs_generator(self) -> bool:
        """Whether the mode draws with a generator."""
        return self.config.mode != "deformation"

    def observe(self, image: Tensor, labels: Tensor) -> None:
        """Takes note of how large the classes of real patches, (B, *spatial), are, of their topology if need be, and, for a
        generator, of how much their intensities, (B, C, *spatial), vary."""
        self.largest = torch.maximum(self.largest, masks.class_sizes(labels, self.codec.classes).amax(dim=0))
        if self.shapes is not None:
            self.topology.observe(labels)
        if self.needs_generator:
            variance = image.flatten(2).var(dim=2).mean(dim=0)
            self.synchronise([variance])
            finite = torch.isfinite(variance)
            self.variance += torch.where(finite, variance, 0.0)
            self.observed += finite

    @property
    def deviation(self) -> Tensor:
        """(C, 1, ...) standard deviation within the real patches so far; 1 for a channel that does not vary."""
        mean = torch.where(self.variance > 0, self.variance / self.observed, 1.0)
        return mean.sqrt().view(-1, *(1,) * len(self.movable_axes))

    def standardised(self, image: Tensor) -> Tensor:
        """(B, C, *spatial) images as the generator knows them, relative to `deviation`: not every normalisation of nnU-Net's
        gives images of unit variance, which its weights of losses, its noise and the shifts of intensities are made for."""
        return image / self.deviation

    def real_condition(self, image: Tensor, labels: Tensor) -> Tensor:
        """(B, layout.channels, *spatial) condition of real pairs with standardised images, as the generator learns it."""
        scene = conditioning.compose_scene(labels, self._tissue(image, labels), self.layout)
        return conditioning.condition(scene, conditioning.class_intensities(image, scene, self.layout), self.layout)

    def style(self, generator: Generator, image: Tensor, rng: torch.Generator) -> Tensor:
        """(B, *style_shape) style noise for as many patches, standard normal times the policy's factor."""
        shape = (len(image), *generator.style_shape(image.shape[2:]))
        return self.policy.style * torch.randn(shape, generator=rng, device=rng.device)

    def draw(self, generator: Generator | None, image: Tensor, labels: Tensor, rng: torch.Generator) -> Pairs:
        """Draws one synthetic pair for every real one.

        Args:
            generator: draws the images; None in mode `deformation`.
            image: (B, C, *spatial) real images.
            labels: (B, *spatial) int64 their class maps.
            rng: source of all randomness, on their device.

        Returns:
            B pairs, with graph to the generator's parameters and the policy's factor on appearance.
        """
        start, reshaped = self._new_shapes(labels, rng)
        change = masks.draw_change(
            labels,
            self.codec.classes,
            self.mask_config,
            self.largest,
            rng,
            amount=self.policy.deformation,
            movable_axes=self.movable_axes,
            frozen_class=self._frozen_class,
            start=start,
        )
        drawn = self._image(generator, image, labels, change, rng)
        if self.config.tone:
            drawn = tone_curve(drawn, self.policy.style * self.config.tone, rng)
        if self.masked_channels.any():
            drawn = drawn.masked_fill(self._outside(image, change), 0)
        learned = None
        if reshaped is not None:
            shown = ((labels > 0) & (labels <= self.codec.foreground)).flatten(1).any(dim=1)
            learned = float((reshaped & change.kept).sum() / shown.sum()) if bool(shown.any()) else None
        return Pairs(drawn, masks.warp(change.labels, change.grid), float(change.kept.float().mean()), learned)

    def _new_shapes(self, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """(B, *spatial) masks of which those (B,) have new shapes that are within the dataset's bounds; the others are real."""
        if self.shapes is None:
            return labels, None
        spread = min(1.0, self.mask_config.spread * float(self.policy.deformation))
        drawn = self.shapes.draw(labels, spread, rng)
        sized = masks.within_sizes(labels, drawn, self.mask_config.smallest, self.largest, self._frozen_class)
        accepted = sized & self.topology.admit(drawn) & (drawn != labels).flatten(1).any(dim=1)
        return torch.where(masks.per_patch(accepted, labels), drawn, labels), accepted

    def _outside(self, image: Tensor, change: MaskChange) -> Tensor:
        """(B, C, *spatial) booleans: where the masked channels of a changed image must be 0."""
        outside = (image[:, self.masked_channels] == 0).all(dim=1).long()
        parts = [masks.warp(outside[source], grid)[:, None].float() for source, grid in _origins(change)]
        return (_joined(parts, change) > 0.5) & self.masked_channels.view(-1, *(1,) * (image.ndim - 2))

    def _image(
        self, generator: Generator | None, image: Tensor, labels: Tensor, change: MaskChange, rng: torch.Generator
    ) -> Tensor:
        """(B, C, *spatial) the image after a change of the masks, as the mode has it."""
        if generator is None:
            return _joined([masks.warp_image(image[source], grid) for source, grid in _origins(change)], change)
        return self.deviation * self._generated(generator, self.standardised(image), labels, change, rng)

    def _generated(
        self, generator: Generator, image: Tensor, labels: Tensor, change: MaskChange, rng: torch.Generator
    ) -> Tensor:
        """As `_image`, of and with standardised images."""
        tissue = self._tissue(image, labels)
        before = conditioning.compose_scene(labels, tissue, self.layout)
        after = conditioning.compose_scene(change.labels, self._transplanted(tissue, change), self.layout)
        own = conditioning.class_intensities(image, before, self.layout)
        shifted = own + self.policy.style * self.config.intensity_shift * _shift(own.shape, rng)
        style = self.style(generator, image, rng)

        wanted = conditioning.condition(after, shifted, self.layout, change.grid)
        if self.config.mode != "differential":
            return generator.draw(wanted, style)
        origins = _origins(change)
        references = [conditioning.condition(before[source], own[source], self.layout, grid) for source, grid in origins]
        # one call for all: with few small patches it is the number of calls that costs
        conditions = [wanted, *references]
        drawn, *replaced = generator.draw(torch.cat(conditions), torch.cat([style] * len(conditions))).chunk(len(conditions))
        unchanged = (wanted == references[0]).flatten(1).all(dim=1)
        drawn = torch.where(masks.per_patch(unchanged, drawn), replaced[0], drawn)  # so that the gradient cancels to the bit
        moved = [masks.warp_image(image[source], grid) for source, grid in origins]
        return drawn + _joined([real - old for real, old in zip(moved, replaced, strict=True)], change)

    def _transplanted(self, tissue: Tensor | None, change: MaskChange) -> Tensor | None:
        if tissue is None or not change.exchanged.any():
            return tissue
        positions = masks.identity_grid(tissue.shape[1:], tissue.device).expand_as(change.grid)
        return torch.where(change.exchanged, masks.warp(tissue[change.donors], masks.affine(positions, change.to_donor)), tissue)

    def _tissue(self, image: Tensor, labels: Tensor) -> Tensor | None:
        if not self.layout.tissues:
            return None
        unlabelled = (labels == 0) | (labels > self.codec.foreground)
        return conditioning.tissue_map(image, unlabelled, self.layout.tissues)


def _shift(shape: torch.Size, rng: torch.Generator) -> Tensor:
    """(B, classes, C) of unit variance, most of it common to all channels: brighter or darker rather than of another hue."""
    common = torch.randn(*shape[:2], 1, generator=rng, device=rng.device)
    own = torch.randn(shape, generator=rng, device=rng.device)
    return math.sqrt(COMMON_SHIFT) * common + math.sqrt(1 - COMMON_SHIFT) * own


def _origins(change: MaskChange) -> list[tuple[Tensor, Tensor]]:
    """Where the content of changed patches comes from, as indices of patches (B,) and positions in them (B, *spatial, dims):
    the patches themselves and, if there are transplants, their donors."""
    origins = [(torch.arange(len(change.donors), device=change.donors.device), change.grid)]
    if change.exchanged.any():
        origins.append((change.donors, masks.affine(change.grid, change.to_donor)))
    return origins


def _joined(contents: list[Tensor], change: MaskChange) -> Tensor:
    """(B, C, *spatial) content of changed patches out of that of their origins, joined over a voxel."""
    if len(contents) == 1:
        return contents[0]
    receivers, donors = contents
    inside = masks.warp(change.exchanged.long(), change.grid)[:, None].float()
    return torch.lerp(receivers, donors, masks.neighbourhood_mean(inside))
