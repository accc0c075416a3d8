"""The conditional variational autoencoder, introspective: its encoder also judges what is drawn.

Soft-IntroVAE (Daniel and Tamar, CVPR 2021, arXiv 2012.13253, equation 4), given the condition, with the L1 distance as
reconstruction error. Unlike the authors' code, both networks step at once, reconstructions are not judged beside drawn
images, and the decoder is not asked to reconstruct what it drew (weighted by 1e-8 there).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from nnunetv2_genseg.synthesis.conditioning import ConditionLayout
from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators.base import register
from nnunetv2_genseg.generators.networks import MixedKernelCell, MixedKernelUNet, NetworkPlan
from nnunetv2_genseg.generators.optimisation import descend, without
from nnunetv2_genseg.generators.pretrained import WEIGHTS


class LatentEncoder(nn.Module):
    """Normal distribution of the latents of an image, given its condition: the U-Net's encoder, then a mean over voxels.

    Args: as in `MixedKernelUNet`.
    """

    def __init__(
        self, plan: NetworkPlan, condition_channels: int, image_channels: int, style_channels: int, width: float
    ) -> None:
        super().__init__()
        features = plan.scaled(width)
        inputs = (condition_channels + image_channels, *features)
        self.cells = nn.Sequential(
            *(MixedKernelCell(inputs[i], features[i], plan.kernels[i], plan.strides[i]) for i in range(len(features)))
        )
        self.head = nn.Linear(features[-1], 2 * style_channels)

    def forward(self, condition: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, condition_channels, *spatial) and (B, image_channels, *spatial) to mean and log variance, (B, style_channels)."""
        summary = self.cells(torch.cat([condition, image], dim=1)).flatten(2).mean(dim=2)
        mean, log_variance = self.head(summary).chunk(2, dim=1)
        return mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) Kullback-Leibler divergence of normal distributions, (B, latents) each, from the standard one, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def _frozen(network: nn.Module, *inputs: Tensor) -> Any:
    """The network's output, without graph to its weights."""
    return functional_call(network, {name: weight.detach() for name, weight in network.named_parameters()}, inputs)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """(B,) L1 distance of images, mean over voxels and channels."""
    return (first - second).abs().flatten(1).mean(dim=1)


@register("vae")
class VaeGenerator:
    """A mixed-kernel U-Net whose style is the latent vector, an encoder that is used in learning only, an Adam for both.

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
        self.config = config
        self.synchronise = synchronise
        sizes = layout.channels, layout.image_channels, config.style_channels, config.width
        self.network = MixedKernelUNet(plan, *sizes)
        self.encoder = LatentEncoder(plan, *sizes)
        both = [*self.encoder.parameters(), *self.network.parameters()]
        self.learned = without(both, self.architecture() if separate_architecture else [])
        self.optimizer = torch.optim.Adam(self.learned, config.learning_rate)

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """One latent vector a patch."""
        return (self.config.style_channels,)

    def draw(self, condition: Tensor, style: Tensor) -> Tensor:
        """See `Generator.draw`."""
        image: Tensor = self.network(condition, style)
        return image

    def learn(self, condition: Tensor, image: Tensor, style: Tensor) -> dict[str, float]:
        """A step of encoder and decoder; the style is what an image is drawn from and the noise of the latents.

        See `Generator.learn`.
        """
        l1, kl, introspection = self.config.l1, self.config.vae.kl, self.config.vae.introspection
        mean, log_variance = self.encoder(condition, image)
        distance = _distance(self.draw(condition, mean + (0.5 * log_variance).exp() * style), image).mean()
        own = divergence(mean, log_variance).mean()
        loss = l1 * distance + kl * own
        values = {"l1": distance.item(), "kl": own.item()}
        if introspection:
            drawn = self.draw(condition, style)
            judged = divergence(*_frozen(self.encoder, condition, drawn)).mean()
            # the encoder's side: what was drawn shall be unlikely, in divergence and in reconstruction
            target = drawn.detach()
            mean, log_variance = self.encoder(condition, target)
            other = style.roll(1, dims=1)  # not the noise that it was drawn from, which would give the encoder the answer
            redrawn = _frozen(self.network, condition, mean + (0.5 * log_variance).exp() * other)
            likelihood = (-2 * (l1 * _distance(redrawn, target) + kl * divergence(mean, log_variance))).exp().mean()
            loss = loss + introspection * (kl * judged + 0.5 * likelihood)
            values["kl_drawn"] = judged.item()
        descend(self.optimizer, loss, self.learned, self.synchronise)
        return values

    def architecture(self) -> list[nn.Parameter]:
        """The kernel mixtures α of the decoder."""
        return self.network.architecture()

    def weights(self) -> list[nn.Parameter]:
        """All parameters of the decoder."""
        return list(self.network.parameters())

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "encoder": self.encoder, "optimizer": self.optimizer}

    def state(self) -> dict[str, Any]:
        """Both networks and the optimiser."""
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
