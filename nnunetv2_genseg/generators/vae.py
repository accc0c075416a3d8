"""The conditional variational autoencoder, introspective: its encoder also judges drawn images.

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

from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators.base import GENERATORS
from nnunetv2_genseg.generators.divergence import divergence
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.networks import MixedKernelCell, MixedKernelUNet, NetworkPlan
from nnunetv2_genseg.generators.optimisation import adam, exclude, load_optimiser, optimiser_step
from nnunetv2_genseg.generators.pretrained import WEIGHTS

LATENTS = 8
"""Length of the latent vector."""
KL = 0.1
"""Weight of the divergence in nats, beside the L1 distance of `generator.l1`."""
INTROSPECTION = 1.0
"""Weight of the introspective terms. With 0 this is an ordinary autoencoder, which only ever sees latents of real images."""


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


def _frozen(network: nn.Module, *inputs: Tensor) -> Any:
    """The network's output, without graph to its weights."""
    return functional_call(network, {name: weight.detach() for name, weight in network.named_parameters()}, inputs)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """(B,) L1 distance of images, mean over voxels and channels."""
    return (first - second).abs().flatten(1).mean(dim=1)


@GENERATORS.register("vae")
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
        self.l1 = config.l1
        self.synchronise = synchronise
        sizes = layout.channels, layout.image_channels, LATENTS, config.width
        self.network = MixedKernelUNet(plan, *sizes)
        self.encoder = LatentEncoder(plan, *sizes)
        both = [*self.encoder.parameters(), *self.network.parameters()]
        self.learned = exclude(both, self.architecture() if separate_architecture else [])
        self.optimizer = adam(self.learned, config.learning_rate)

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """One latent vector a patch."""
        return (LATENTS,)

    def sample(self, condition: Tensor, style: Tensor) -> Tensor:
        """Decodes the latents; see `Generator.sample`."""
        image: Tensor = self.network(condition, style)
        return image

    def training_step(self, condition: Tensor, image: Tensor, style: Tensor) -> dict[str, Tensor]:
        """A step of encoder and decoder; an image is drawn from the style, which is also the noise of the latents.

        See `Generator.training_step`.
        """
        mean, log_variance = self.encoder(condition, image)
        distance = _distance(self.sample(condition, mean + (0.5 * log_variance).exp() * style), image).mean()
        own = divergence(mean, log_variance).mean()
        drawn = self.sample(condition, style)
        judged = divergence(*_frozen(self.encoder, condition, drawn)).mean()
        # the encoder's side: drawn images shall be unlikely, in divergence and in reconstruction
        target = drawn.detach()
        mean, log_variance = self.encoder(condition, target)
        other = style.roll(1, dims=1)  # not the noise that it was drawn from, which would give the encoder the answer
        redrawn = _frozen(self.network, condition, mean + (0.5 * log_variance).exp() * other)
        likelihood = (-2 * (self.l1 * _distance(redrawn, target) + KL * divergence(mean, log_variance))).exp().mean()
        loss = self.l1 * distance + KL * own + INTROSPECTION * (KL * judged + 0.5 * likelihood)
        finite = optimiser_step(self.optimizer, loss, self.learned, self.synchronise)
        return {"l1": distance.detach(), "kl": own.detach(), "kl_drawn": judged.detach(), "finite": finite}

    def architecture(self) -> list[nn.Parameter]:
        """The kernel mixtures α of the decoder."""
        return self.network.architecture()

    def weights(self) -> list[nn.Parameter]:
        """All parameters of the decoder."""
        return list(self.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Both networks and the optimiser."""
        return {
            "network": dict(self.network.state_dict()),
            "encoder": dict(self.encoder.state_dict()),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.encoder.load_state_dict(state["encoder"])
        load_optimiser(self.optimizer, state["optimizer"])

    def save_weights(self, folder: Path) -> None:
        """See `Pretrainable.save_weights`."""
        save_file(self.network.state_dict(), folder / WEIGHTS)

    def load_weights(self, folder: Path) -> None:
        """See `Pretrainable.load_weights`."""
        self.network.load_state_dict(load_file(folder / WEIGHTS))
