"""The generator's source: the deformed mask in new intensities, drawn from a condition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.generators import Generator, build_generator
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.synthesis import conditioning
from nnunetv2_genseg.synthesis.intensity_variation import IntensityVariation
from nnunetv2_genseg.synthesis.mask_sources import MASK_SOURCES
from nnunetv2_genseg.synthesis.masks import MaskChange
from nnunetv2_genseg.synthesis.modes import MODES, Redrawing
from nnunetv2_genseg.synthesis.pairs import Pairs
from nnunetv2_genseg.synthesis.sources.base import PAIR_SOURCES, SourceContext, merged_losses
from nnunetv2_genseg.synthesis.spatial import warp_labels


@PAIR_SOURCES.register("redraw")
class RedrawSource:
    """Owns the generator, the mask source and the mode.

    Args:
        context: what all sources share.

    Raises:
        GenSegError: no generator, mask source or mode has the configured name.
    """

    def __init__(self, context: SourceContext) -> None:
        config, codec, device = context.config, context.codec, context.device
        self.context = context
        self.mode = MODES[config.redraw.mode]()
        tissues = config.redraw.tissue_classes if self.mode.uses_tissues else 0
        self.layout = ConditionLayout(codec.foreground, tissues, context.image_channels, context.plan.movable_axes)
        self.masks = MASK_SOURCES[config.masks.source](
            codec.foreground, context.plan.patch_size, seed=config.seed, device=device, synchronise=context.synchronise
        )
        self.generator: Generator = build_generator(
            config.generator,
            context.plan,
            self.layout,
            seed=config.seed,
            device=device,
            separate_architecture=config.feedback.enabled and config.feedback.parameters == "architecture",
            synchronise=context.synchronise,
        )
        self.shows_generator = not self.mode.cancels or config.intensity.shift > 0 or self.masks.new_shapes
        self.variance = torch.zeros(context.image_channels, device=device)
        """(C,) variance within real patches, summed over the batches so far."""
        self.observed = torch.zeros(context.image_channels, device=device)
        """(C,) how many batches these are."""
        self.variation = IntensityVariation(self.layout.scene_classes, context.image_channels, device)
        """Of standardised real images."""

    @property
    def deviation(self) -> Tensor:
        """(C, 1, ...) standard deviation within the real patches so far; 1 for a channel that does not vary.

        The generator sees images relative to it: not every normalisation of nnU-Net gives images of unit variance, which
        the weights of its losses, its noise and the intensity shifts are made for.
        """
        mean = torch.where(self.variance > 0, self.variance / self.observed, 1.0)
        return mean.sqrt().view(-1, *(1,) * len(self.context.plan.patch_size))

    @torch.no_grad()
    def observe(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Measures how much real images and their classes vary; see `deviation` and `variation`.

        Args:
            image: (B, C, *spatial).
            labels: (B, *spatial) int64.

        Returns:
            The standardised images, and their scene and class intensities.
        """
        variance = image.flatten(2).var(dim=2).mean(dim=0)
        self.context.synchronise([variance])
        finite = torch.isfinite(variance)
        self.variance += torch.where(finite, variance, 0.0)
        self.observed += finite
        image = image / self.deviation
        scene, intensities = self._scene(image, labels)
        self.variation.observe(intensities, scene)
        return image, scene, intensities

    def training_step(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """A step of the generator and one of the mask source on real pairs; see `PairSource.training_step`."""
        return merged_losses([self.learn(image, labels, rng), self.masks.training_step(labels, rng)])

    def learn(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """A step of the generator alone, as `training_step`."""
        with torch.no_grad():
            image, scene, intensities = self.observe(image, labels)
            condition = conditioning.condition(scene, intensities, self.layout)
            style = self._style(image, rng)
        return self.generator.training_step(condition, image, style)

    def _scene(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, *spatial) classes and tissue classes of standardised images, and (B, classes, C) their mean intensities."""
        scene = conditioning.compose_scene(labels, self._tissue(image, labels), self.layout)
        return scene, conditioning.class_intensities(image, scene, self.layout)

    def sample(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> Pairs:
        """See `PairSource.sample`."""
        context = self.context
        start = self.masks.sample(labels, rng, context.policy.deformation)
        change = context.deformer.sample(labels, rng, context.policy.deformation, start)
        drawn = self.deviation * self.mode.image(self._redrawing(image / self.deviation, labels, change, rng))
        return context.finished(drawn, image, change, rng)

    def _redrawing(self, image: Tensor, labels: Tensor, change: MaskChange, rng: torch.Generator) -> Redrawing:
        """The conditions before and after the change, for a standardised image."""
        tissue = self._tissue(image, labels)
        before = conditioning.compose_scene(labels, tissue, self.layout)
        own = conditioning.class_intensities(image, before, self.layout)
        factor = self.context.policy.style * self.context.config.intensity.shift
        shifted = own + factor * self.variation.shift(len(own), rng)
        deformed = warp_labels(before, change.grid)
        after = deformed
        if self.masks.new_shapes:
            bare = tissue
            if tissue is not None:
                bare = conditioning.spread(tissue, self._unlabelled(labels), self.layout.tissues)
            after = warp_labels(conditioning.compose_scene(change.labels, bare, self.layout), change.grid)
        return Redrawing(
            image=image,
            grid=change.grid,
            wanted=conditioning.condition(after, shifted, self.layout),
            present=conditioning.condition(deformed, own, self.layout) if self.mode.cancels else None,
            style=self._style(image, rng, self.context.policy.style),
            generator=self.generator,
        )

    def _style(self, image: Tensor, rng: torch.Generator, factor: Tensor | float = 1.0) -> Tensor:
        """(B, *style_shape) style noise, standard normal times a factor."""
        shape = (len(image), *self.generator.style_shape(image.shape[2:]))
        return factor * self.context.normal(shape, rng)

    def _unlabelled(self, labels: Tensor) -> Tensor:
        return ~self.context.codec.is_foreground(labels)

    def _tissue(self, image: Tensor, labels: Tensor) -> Tensor | None:
        if not self.layout.tissues:
            return None
        return conditioning.tissue_map(image, self._unlabelled(labels), self.layout.tissues)

    def state_dict(self) -> dict[str, Any]:
        """Generator, mask source, and how the images vary."""
        return {
            "generator": self.generator.state_dict(),
            "masks": self.masks.state_dict(),
            "variance": self.variance,
            "observed": self.observed,
            "variation": self.variation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.masks.load_state_dict(state["masks"])
        self.variance.copy_(state["variance"])
        self.observed.copy_(state["observed"])
        self.variation.load_state_dict(state["variation"])
