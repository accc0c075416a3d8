"""The conditional GAN: hinge loss (Lim and Ye 2017, arXiv 1705.02894) and L1 on the real pairs, as in pix2pix.

For few images: differentiable augmentation, a gradient penalty, and a moving average of the weights that images are drawn with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators.augmentation import augment
from nnunetv2_genseg.generators.averaging import MovingAverage
from nnunetv2_genseg.generators.base import GENERATORS
from nnunetv2_genseg.generators.flat_style import flat_length, split_style
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.networks import MixedKernelUNet, NetworkPlan, PatchDiscriminator
from nnunetv2_genseg.generators.optimisation import adam, exclude, load_optimiser, optimiser_step
from nnunetv2_genseg.generators.pretrained import WEIGHTS

STYLE_CHANNELS = 8
"""Length of the part of the style that acts on whole patches."""
BETAS = (0.5, 0.999)
"""Adam's, as in pix2pix."""
R1_INTERVAL = 16
"""The gradient penalty is taken at every so many steps, with so many times its weight (StyleGAN2, arXiv 1912.04958)."""
R1_WEIGHT = 10.0 / 2
"""Weight of the gradient penalty: γ / 2 with γ = 10 (Mescheder et al., ICML 2018, arXiv 1801.04406)."""


def gradient_penalty(scores: Tensor, image: Tensor) -> Tensor:
    """R1: the squared gradient of the scores by the real image; each score counts as one sample, as in the hinge loss.

    Args:
        scores: of real images, with graph to them.
        image: the real images that the discriminator saw.

    Returns:
        0-d, with graph.
    """
    (slope,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
    return slope.square().sum() / scores.numel()


@GENERATORS.register("gan")
class GanGenerator:
    """A mixed-kernel U-Net that draws, a patch discriminator, and an Adam for each, with equal rates.

    The style is one flat vector: `STYLE_CHANNELS` numbers that modulate the channels of the decoder, then a noise map for
    every stage of the decoder. Images are drawn with a moving average of the learned weights.

    Args: as in `build_generator`.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        plan: NetworkPlan,
        layout: ConditionLayout,
        *,
        separate_architecture: bool,
        synchronise: Callable[[Iterable[Tensor]], None],
    ) -> None:
        self.l1 = config.l1
        self.synchronise = synchronise
        channels, image_channels = layout.channels, layout.image_channels
        self.network = MixedKernelUNet(plan, channels, image_channels, STYLE_CHANNELS, config.width, noise_inputs=True)
        self.discriminator = PatchDiscriminator(plan, channels, image_channels, config.width)
        self.average = MovingAverage(self.network)
        self.learned = exclude(self.weights(), self.architecture() if separate_architecture else [])
        self.judging = list(self.discriminator.parameters())
        self.network_optimizer = adam(self.learned, config.learning_rate, BETAS)
        self.discriminator_optimizer = adam(self.judging, config.learning_rate, BETAS)
        self.rng = torch.Generator("cpu").manual_seed(torch.initial_seed())
        """Of the augmentation."""
        self.steps = 0
        """Training steps so far."""

    def _style_parts(self, spatial: Sequence[int]) -> list[tuple[int, ...]]:
        return [(STYLE_CHANNELS,), *self.network.noise_shapes(spatial)]

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """One flat vector: the style of the whole patch, then the decoder's noise maps."""
        return (flat_length(self._style_parts(spatial)),)

    def style_grid(self) -> tuple[int, ...]:
        """Of the coarsest noise map; see `StyleOfMaps`."""
        strides = self.network.noise_strides()
        return strides[0] if strides else (1,) * self.network.plan.dims

    def crop_style(self, style: Tensor, spatial: Sequence[int], corner: Sequence[int], size: Sequence[int]) -> Tensor:
        """The modulation is the image's, of each noise map the patch has its part; see `StyleOfMaps`."""
        modulation, *noise = split_style(style, self._style_parts(spatial))
        parts = [modulation]
        for maps, strides, extent in zip(noise, self.network.noise_strides(), self.network.noise_shapes(size), strict=True):
            starts = [start // stride for start, stride in zip(corner, strides, strict=True)]
            place: Any = (..., *(slice(start, start + n) for start, n in zip(starts, extent[1:], strict=True)))
            parts.append(maps[place].flatten(1))
        return torch.cat(parts, dim=1)

    def _drawn(self, weights: dict[str, Tensor], condition: Tensor, style: Tensor) -> Tensor:
        modulation, *noise = split_style(style, self._style_parts(condition.shape[2:]))
        image: Tensor = functional_call(self.network, weights, (condition, modulation, noise))
        return image

    def sample(self, condition: Tensor, style: Tensor) -> Tensor:
        """Draws images with the averaged weights; see `Generator.sample`."""
        return self._drawn(self.average.weights(), condition, style)

    def training_step(self, condition: Tensor, image: Tensor, style: Tensor) -> dict[str, Tensor]:
        """A step of the discriminator, then one of the generator; see `Generator.training_step`."""
        drawn = self._drawn({}, condition, style)
        shown = self.discriminator.entry(condition)
        judged, finite = self._discriminator_step(shown, image, drawn.detach())
        distance = (drawn - image).abs().mean()
        adversarial = -self.discriminator(*augment(shown.detach(), drawn, self.rng)).mean()
        with self.average.updated():
            finite &= optimiser_step(self.network_optimizer, adversarial + self.l1 * distance, self.learned, self.synchronise)
        self.steps += 1
        return {"loss_adversarial": adversarial.detach(), "l1": distance.detach(), "loss_discriminator": judged, "finite": finite}

    def _discriminator_step(self, shown: Tensor, image: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The hinge loss before the step, and whether the step was finite; `shown` is the condition behind its `entry`."""
        penalised = self.steps % R1_INTERVAL == 0
        shown_of_real, real = augment(shown, image, self.rng)
        real.requires_grad_(penalised)
        seen = zip((shown_of_real, real), augment(shown, drawn, self.rng), strict=True)
        real_score, drawn_score = self.discriminator(*(torch.cat(both) for both in seen)).chunk(2)
        loss = hinge = (1 - real_score).relu().mean() + (1 + drawn_score).relu().mean()
        if penalised:
            loss = hinge + R1_INTERVAL * R1_WEIGHT * gradient_penalty(real_score, real)
        return hinge.detach(), optimiser_step(self.discriminator_optimizer, loss, self.judging, self.synchronise)

    def architecture(self) -> list[nn.Parameter]:
        """The kernel mixtures α."""
        return self.network.architecture()

    def weights(self) -> list[nn.Parameter]:
        """All parameters of the U-Net."""
        return list(self.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Both networks, both optimisers, the average, the state of the augmentation's random numbers, and the steps."""
        return {
            "network": dict(self.network.state_dict()),
            "discriminator": dict(self.discriminator.state_dict()),
            "network_optimizer": self.network_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "average": self.average.state_dict(),
            "rng": self.rng.get_state(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.discriminator.load_state_dict(state["discriminator"])
        load_optimiser(self.network_optimizer, state["network_optimizer"])
        load_optimiser(self.discriminator_optimizer, state["discriminator_optimizer"])
        self.average.load_state_dict(state["average"])
        self.rng.set_state(state["rng"].cpu())
        self.steps = state["steps"]

    def save_weights(self, folder: Path) -> None:
        """See `Pretrainable.save_weights`."""
        save_file({name: weight.detach() for name, weight in self.average.weights().items()}, folder / WEIGHTS)

    def load_weights(self, folder: Path) -> None:
        """See `Pretrainable.load_weights`."""
        self.network.load_state_dict(load_file(folder / WEIGHTS))
        self.average.reset()
