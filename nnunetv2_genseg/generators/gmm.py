"""A Gaussian mixture: every class has a mean and a spread, then blur and a bias field; there is nothing to train.

The recipe is SynthSeg's (Billot et al., Medical Image Analysis 2023, doi 10.1016/j.media.2023.102789), around the dataset's own
intensities: means come with the condition, the spreads within the classes are measured on the real pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_genseg.config import GeneratorConfig, GenSegError
from nnunetv2_genseg.generators.base import GENERATORS
from nnunetv2_genseg.generators.flat_style import flat_length, split_style
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.networks import NetworkPlan
from nnunetv2_genseg.generators.smoothing import neighbourhood_mean

BIAS_POINTS = 4
"""Control points of the bias field along every axis."""
BIAS = 0.3
"""Standard deviation of the bias field at a control point, relative to that of the image."""
SPREAD_CHANGE = 0.5
"""Standard deviation of the logarithm of a class's spread relative to the measured one."""
MOMENTUM = 0.99
"""Of the running mean of the measured spreads."""


@GENERATORS.register("gmm")
class GmmGenerator:
    """Draws every voxel from its class's normal distribution.

    Args: as in `build_generator`.

    Raises:
        GenSegError: the conditions hold no intensities.
    """

    any_extent = True
    """Images of any size are drawn at once, not in tiles: noise and bias field are then the image's."""

    def __init__(
        self,
        config: GeneratorConfig,
        plan: NetworkPlan,
        layout: ConditionLayout,
        *,
        separate_architecture: bool,
        synchronise: Callable[[Iterable[Tensor]], None],
    ) -> None:
        if not layout.tissues:
            raise GenSegError(
                "generator.name 'gmm' needs the intensities of tissue classes; set redraw.mode to 'tissue' or 'residual', "
                "or choose another generator"
            )
        self.layout = layout
        self.movable_axes = plan.movable_axes
        self.synchronise = synchronise
        self.spread = torch.zeros(layout.scene_classes - 1, layout.image_channels)
        """(scene_classes - 1, C) measured standard deviation within every class but the background."""
        self.observed = torch.zeros(layout.scene_classes - 1, 1)
        """(scene_classes - 1, 1) weight that real patches have in `spread`."""

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """One voxel noise, a factor on every class's spread, the blur and the bias field, all in one vector."""
        return (flat_length(self._style_parts(spatial)),)

    def _style_parts(self, spatial: Sequence[int]) -> list[tuple[int, ...]]:
        channels = self.layout.image_channels
        return [(channels, *spatial), tuple(self.spread.shape), (1,), (channels, *(BIAS_POINTS,) * len(spatial))]

    def sample(self, condition: Tensor, style: Tensor) -> Tensor:
        """Draws every voxel; see `Generator.sample`."""
        spatial = condition.shape[2:]
        noise, change, blur, bias = split_style(style, self._style_parts(spatial))
        classes = self.layout.scene_classes - 1
        member, means = condition[:, :classes], condition[:, classes:]
        spread = self.spread / self.observed.clamp(min=torch.finfo(self.observed.dtype).tiny)
        deviation = (SPREAD_CHANGE * change).exp() * spread
        image = means + (deviation.transpose(1, 2) @ member.flatten(2)).view_as(means) * noise
        blurred = neighbourhood_mean(image, self.movable_axes)
        image = torch.lerp(image, blurred, blur.sigmoid().view(-1, *(1,) * (image.ndim - 1)))
        mode = "bilinear" if len(spatial) == 2 else "trilinear"
        return image + BIAS * functional.interpolate(bias, size=spatial, mode=mode)

    def training_step(self, condition: Tensor, image: Tensor, style: Tensor) -> dict[str, Tensor]:
        """Measures the spreads within the classes of real pairs; see `Generator.training_step`."""
        classes = self.layout.scene_classes - 1
        member = condition[:, :classes].flatten(2)
        intensities = image.flatten(2).transpose(1, 2)
        size = member.sum(dim=2)[..., None]
        mean = member @ intensities / size.clamp(min=1)
        variance = (member @ intensities.square() / size.clamp(min=1) - mean.square()).clamp(min=0)
        shown = (size > 1).float()
        weight = shown.sum(dim=0) / len(condition)
        measured = (variance.sqrt() * shown).sum(dim=0) / len(condition)
        self.synchronise([weight, measured])
        finite = weight.isfinite().all() & measured.isfinite().all()
        self.observed = torch.where(finite, MOMENTUM * self.observed + (1 - MOMENTUM) * weight, self.observed)
        self.spread = torch.where(finite, MOMENTUM * self.spread + (1 - MOMENTUM) * measured, self.spread)
        return {"spread": (self.spread.sum(dim=0) / self.observed.sum(dim=0).clamp(min=1e-12)).mean(), "finite": finite}

    def architecture(self) -> list[nn.Parameter]:
        """None."""
        return []

    def weights(self) -> list[nn.Parameter]:
        """None: feedback can move the sampling policy only."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """The measured spreads."""
        return {"spread": self.spread, "observed": self.observed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.spread, self.observed = state["spread"].to(self.spread), state["observed"].to(self.observed)
