"""How a synthetic pair is drawn from a real one: a new mask, its condition, and an image in one of three modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_genseg import conditioning, masks
from nnunetv2_genseg.conditioning import ConditionLayout
from nnunetv2_genseg.config import ConditioningConfig, MaskConfig
from nnunetv2_genseg.generators import Generator
from nnunetv2_genseg.labels import LabelCodec
from nnunetv2_genseg.policy import Policy


@dataclass(frozen=True)
class Pairs:
    """Synthetic images and the masks that they were drawn from."""

    image: Tensor
    """(B, C, *spatial), in nnU-Net's normalised intensities."""
    labels: Tensor
    """(B, *spatial) int64 class maps."""


class PairSource:
    """Draws synthetic pairs, and the conditions of the real ones that the generator learns from.

    Args:
        codec: the dataset's classes.
        image_channels: channels of the image.
        conditioning_config: the mode and its settings.
        mask_config: how masks are changed.
        movable_axes: False for an axis along which masks are not deformed.
        device: where everything lives.
    """

    def __init__(
        self,
        codec: LabelCodec,
        image_channels: int,
        conditioning_config: ConditioningConfig,
        mask_config: MaskConfig,
        movable_axes: tuple[bool, ...],
        device: torch.device,
    ) -> None:
        self.codec = codec
        self.config = conditioning_config
        keeps_image = conditioning_config.mode == "differential"
        self.mask_config = mask_config.model_copy(update={"recombination": 0.0}) if keeps_image else mask_config
        self.movable_axes = movable_axes
        tissues = 0 if conditioning_config.mode == "mask" else conditioning_config.tissue_classes
        self.layout = ConditionLayout(codec.foreground, tissues, image_channels)
        self.policy = Policy(codec.foreground).to(device)
        self.largest = torch.zeros(codec.classes, device=device)
        """(classes,) most voxels of every class in one real patch so far: the dataset's own bound on new masks."""

    def observe(self, labels: Tensor) -> None:
        """Takes note of how large the classes of real patches, (B, *spatial), are."""
        self.largest = torch.maximum(self.largest, masks.class_sizes(labels, self.codec.classes).amax(dim=0))

    def real_condition(self, image: Tensor, labels: Tensor) -> Tensor:
        """(B, layout.channels, *spatial) condition of real pairs, as the generator learns it."""
        scene = conditioning.compose_scene(labels, self._tissue(image, labels), self.layout)
        return conditioning.condition(scene, conditioning.class_intensities(image, scene, self.layout), self.layout)

    def style(self, count: int, channels: int, rng: torch.Generator) -> Tensor:
        """(count, channels) style noise, standard normal times the policy's factor."""
        return self.policy.style * torch.randn(count, channels, generator=rng, device=rng.device)

    def draw(self, generator: Generator, image: Tensor, labels: Tensor, rng: torch.Generator) -> Pairs:
        """Draws one synthetic pair for every real one.

        Args:
            generator: draws the images.
            image: (B, C, *spatial) real images.
            labels: (B, *spatial) int64 their class maps.
            rng: source of all randomness, on their device.

        Returns:
            B pairs, with graph to the generator's parameters and the policy.
        """
        change = masks.draw_change(
            labels,
            self.codec.classes,
            self.mask_config,
            self.largest,
            rng,
            amount=self.policy.deformation,
            movable_axes=self.movable_axes,
            frozen_class=self.codec.foreground + 1 if self.codec.has_ignore else None,
        )
        tissue = self._tissue(image, labels)
        before = conditioning.compose_scene(labels, tissue, self.layout)
        after = conditioning.compose_scene(change.labels, tissue, self.layout)
        own = conditioning.class_intensities(image, before, self.layout)
        shift = self.config.intensity_shift * torch.randn(own.shape, generator=rng, device=rng.device)
        shifted = own + self.policy.style * shift
        style = self.style(len(image), generator.style_channels, rng)

        drawn = generator.draw(conditioning.condition(after, shifted, self.layout, change.grid), style)
        if self.config.mode == "differential":
            reference = generator.draw(conditioning.condition(before, own, self.layout, change.grid), style)
            drawn = masks.warp_image(image, change.grid) + drawn - reference
        return Pairs(drawn, masks.warp(change.labels, change.grid.detach()))

    def _tissue(self, image: Tensor, labels: Tensor) -> Tensor | None:
        if not self.layout.tissues:
            return None
        unlabelled = (labels == 0) | (labels > self.codec.foreground)
        return conditioning.tissue_map(image, unlabelled, self.layout.tissues)
