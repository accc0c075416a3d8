"""Flow matching with diffusers: an image is noise that a network moves along nearly straight lines, in a few steps.

The network learns the velocity noise − image at (1 − σ) image + σ noise, 0 < σ ≤ 1 (Lipman et al., arXiv 2210.02747, and
Liu et al., arXiv 2209.03003, both ICLR 2023). In 2D it is diffusers' own `UNet2DModel`, in 3D the GAN's U-Net, told σ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators.averaging import MovingAverage
from nnunetv2_genseg.generators.base import GENERATORS
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.networks import MixedKernelUNet, NetworkPlan
from nnunetv2_genseg.generators.optimisation import adam, exclude, load_optimiser, optimiser_step

TIME_CHANNELS = 32
"""Length of the embedding of σ in 3D."""
NETWORK, SCHEDULER = "unet", "scheduler"
"""Sub-folders of a trained generator, as in diffusers' pipelines."""
GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Step between the σ of successive patches, modulo 1: a low-discrepancy sequence."""
FEEDBACK_STEPS = 1
"""Last steps of a draw through which gradients pass; the velocities of the others are constants, which bounds the memory."""


class TimedUNet(ModelMixin, ConfigMixin):
    """The mixed-kernel U-Net with σ in the place of the style; called, saved and loaded as diffusers' `UNet2DModel`.

    Args:
        in_channels: of the noisy image and the condition together.
        out_channels: of the image.
        patch_size: see `NetworkPlan`, as the rest.
        features: channels of every stage, not scaled any more.
        strides: of every stage.
        kernels: of every stage.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: Sequence[int],
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        plan = NetworkPlan(tuple(patch_size), tuple(features), tuple(map(tuple, strides)), tuple(map(tuple, kernels)))
        self.frequencies = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embedding = TimestepEmbedding(TIME_CHANNELS, TIME_CHANNELS)
        self.unet = MixedKernelUNet(plan, in_channels, out_channels, TIME_CHANNELS, width=1.0)

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        """(B, in_channels, *spatial) and () or (B,) timesteps 1000 σ to the velocity, (B, out_channels, *spatial)."""
        frequencies = self.frequencies(timestep.to(sample.device).expand(len(sample)))
        return UNet2DOutput(sample=self.unet(sample, self.embedding(frequencies.to(sample.dtype))))


def flow_network(plan: NetworkPlan, layout: ConditionLayout, width: float) -> ModelMixin:
    """The network from (noisy image, condition) and timestep to velocity, with the plan's channels times `width`.

    diffusers' 2D network halves both axes from level to level, so it has as many of the plan's stages as the shorter
    axis, or the one with fewer factors of two, can be halved.
    """
    features, inputs = plan.scaled(width), layout.image_channels + layout.channels
    network: ModelMixin
    if plan.dims == 3:
        network = TimedUNet(inputs, layout.image_channels, plan.patch_size, features, plan.strides, plan.kernels)
    else:
        halvings = min((extent & -extent).bit_length() - 1 for extent in plan.patch_size)
        features = features[: 1 + halvings]
        network = UNet2DModel(
            sample_size=plan.patch_size,
            in_channels=inputs,
            out_channels=layout.image_channels,
            block_out_channels=features,
            down_block_types=("DownBlock2D",) * len(features),
            up_block_types=("UpBlock2D",) * len(features),
            layers_per_block=1,
            norm_num_groups=1,
            add_attention=False,
        )
    return network


@GENERATORS.register("diffusion")
class DiffusionGenerator:
    """Draws by Euler steps of diffusers' flow matching scheduler from the style, which is the noise.

    Images are drawn with a moving average of the learned weights.

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
        self.sampling_steps = config.diffusion.sampling_steps
        self.image_channels = layout.image_channels
        self.synchronise = synchronise
        self.network = flow_network(plan, layout, config.width)
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.average = MovingAverage(self.network)
        self.learned = exclude(self.weights(), self.architecture() if separate_architecture else [])
        self.optimizer = adam(self.learned, config.learning_rate)
        self.steps = 0
        """Training steps so far."""

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The noise that the image is made of."""
        return (self.image_channels, *spatial)

    def sample(self, condition: Tensor, style: Tensor) -> Tensor:
        """Draws images with the averaged weights; see `Generator.sample` and `FEEDBACK_STEPS`."""
        weights, steps = self.average.weights(), self.sampling_steps
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        self.scheduler.set_begin_index(0)
        image = style
        for left, time in zip(range(steps, 0, -1), self.scheduler.timesteps.tolist(), strict=True):
            timestep = torch.full((), time, device=style.device)  # made there: a copy would wait for the device
            with torch.set_grad_enabled(torch.is_grad_enabled() and left <= FEEDBACK_STEPS):
                noisy = torch.cat([image, condition], dim=1)
                velocity = functional_call(self.network, weights, (noisy, timestep)).sample
            image = self.scheduler.step(velocity, timestep, image, return_dict=False)[0]
        return image

    def training_step(self, condition: Tensor, image: Tensor, style: Tensor) -> dict[str, Tensor]:
        """A step towards the velocities at one σ a patch; see `Generator.training_step`."""
        sigma = self._sigma(len(image), image.device).to(image.dtype)
        fraction = sigma.view(-1, *(1,) * (image.ndim - 1))
        noisy = torch.lerp(image, style, fraction)
        timestep = sigma * self.scheduler.config.num_train_timesteps
        velocity = self.network(torch.cat([noisy, condition], dim=1), timestep).sample
        loss = (velocity - (style - image)).square().mean()
        with self.average.updated():
            finite = optimiser_step(self.optimizer, loss, self.learned, self.synchronise)
        self.steps += 1
        distance = (noisy - fraction * velocity.detach() - image).abs().mean()
        return {"flow": loss.detach(), "l1": distance, "finite": finite}

    def _sigma(self, count: int, device: torch.device) -> Tensor:
        """(count,) in (0, 1], spread more evenly over patches and iterations than random numbers."""
        first = self.steps * count * GOLDEN_RATIO % 1
        return 1 - torch.arange(count, device=device).mul(GOLDEN_RATIO).add(first).frac()

    def architecture(self) -> list[nn.Parameter]:
        """The kernel mixtures α in 3D; none in 2D."""
        return self.network.unet.architecture() if isinstance(self.network, TimedUNet) else []

    def weights(self) -> list[nn.Parameter]:
        """All parameters of the network."""
        return list(self.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, the average and the number of steps."""
        return {
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.network.load_state_dict(state["network"])
        load_optimiser(self.optimizer, state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.steps = state["steps"]

    def save_weights(self, folder: Path) -> None:
        """See `Pretrainable.save_weights`; diffusers' classes read the sub-folders.

        `sampling_steps` Euler steps at sigmas 1, …, 1 / `sampling_steps` from noise draw the same images as `sample`. The
        network's input is the noisy image, then the condition.
        """
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.average.weights())
        network.save_pretrained(folder / NETWORK)
        self.scheduler.save_pretrained(folder / SCHEDULER)

    def load_weights(self, folder: Path) -> None:
        """See `Pretrainable.load_weights`."""
        self.network.load_state_dict(load_file(folder / NETWORK / "diffusion_pytorch_model.safetensors"))
        self.average.reset()
