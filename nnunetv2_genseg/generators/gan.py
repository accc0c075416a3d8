"""The conditional GAN: hinge loss (Lim and Ye 2017, arXiv 1705.02894) and L1 on the real pairs, as in pix2pix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nnunetv2_genseg.synthesis.conditioning import ConditionLayout
from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators.base import register
from nnunetv2_genseg.generators.networks import MixedKernelUNet, NetworkPlan, PatchDiscriminator
from nnunetv2_genseg.generators.optimisation import descend, without
from nnunetv2_genseg.generators.pretrained import WEIGHTS


@register("gan")
class GanGenerator:
    """A mixed-kernel U-Net that draws, a patch discriminator that judges, and an Adam for each.

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
        self.style_channels = config.style_channels
        self.l1 = config.l1
        self.synchronise = synchronise
        channels, image_channels = layout.channels, layout.image_channels
        self.network = MixedKernelUNet(plan, channels, image_channels, config.style_channels, config.width)
        self.discriminator = PatchDiscriminator(plan, channels, image_channels, config.width)
        self.learned = without(self.weights(), self.architecture() if separate_architecture else [])
        betas = (0.5, 0.999)
        self.network_optimizer = torch.optim.Adam(self.learned, config.learning_rate, betas)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), config.learning_rate, betas)

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """One vector a patch."""
        return (self.style_channels,)

    def draw(self, condition: Tensor, style: Tensor) -> Tensor:
        """See `Generator.draw`."""
        image: Tensor = self.network(condition, style)
        return image

    def learn(self, condition: Tensor, image: Tensor, style: Tensor) -> dict[str, float]:
        """A step of the discriminator, then one of the generator; see `Generator.learn`."""
        drawn = self.draw(condition, style)
        real_score = self.discriminator(condition, image)
        drawn_score = self.discriminator(condition, drawn.detach())
        judge = (1 - real_score).relu().mean() + (1 + drawn_score).relu().mean()
        descend(self.discriminator_optimizer, judge, list(self.discriminator.parameters()), self.synchronise)

        distance = (drawn - image).abs().mean()
        adversarial = -self.discriminator(condition, drawn).mean()
        descend(self.network_optimizer, adversarial + self.l1 * distance, self.learned, self.synchronise)
        return {"generator": adversarial.item(), "l1": distance.item(), "discriminator": judge.item()}

    def architecture(self) -> list[nn.Parameter]:
        """The kernel mixtures α."""
        return self.network.architecture()

    def weights(self) -> list[nn.Parameter]:
        """All parameters of the U-Net."""
        return list(self.network.parameters())

    def _parts(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "discriminator": self.discriminator,
            "network_optimizer": self.network_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def state(self) -> dict[str, Any]:
        """Both networks and both optimisers."""
        return {name: dict(part.state_dict()) for name, part in self._parts().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def save_weights(self, folder: Path) -> None:
        """See `Pretrainable.save_weights`."""
        save_file(self.network.state_dict(), folder / WEIGHTS)

    def load_weights(self, folder: Path) -> None:
        """See `Pretrainable.load_weights`."""
        self.network.load_state_dict(load_file(folder / WEIGHTS))
