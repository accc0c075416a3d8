"""The protocol of a generator family, and the registry that finds one by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.networks import NetworkPlan
from nnunetv2_genseg.registry import Registry


class Generator(Protocol):
    """Draws images from conditions and learns to from real pairs."""

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Shape of one patch's style noise, for patches of this extent."""

    def sample(self, condition: Tensor, style: Tensor) -> Tensor:
        """(B, layout.channels, *spatial) and (B, *style_shape) to (B, layout.image_channels, *spatial), for any B, every patch
        by itself; differentiable in the condition, the style and the generator's parameters."""

    def training_step(self, condition: Tensor, image: Tensor, style: Tensor) -> dict[str, Tensor]:
        """One optimisation step on real pairs.

        Nothing waits for the device. So a gradient that is not finite is no error here: the family puts no NaN or infinity
        into its state, and the caller goes back to an earlier state when it reads `finite`.

        Args:
            condition: (B, layout.channels, *spatial).
            image: (B, layout.image_channels, *spatial).
            style: (B, *style_shape) standard normal noise.

        Returns:
            The losses by name and `finite`, whether all gradients were finite: 0-d tensors on the device, without graph.
        """

    def architecture(self) -> list[nn.Parameter]:
        """Logits, a vector for every choice between operations, mixed by their softmax; empty for a family without any."""

    def weights(self) -> list[nn.Parameter]:
        """All parameters of what `sample` runs through."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs: tensors, numbers, strings, lists and dictionaries only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, whose tensors may come from another device."""


class GeneratorFactory(Protocol):
    """Builds a family's generator."""

    def __call__(
        self,
        config: GeneratorConfig,
        plan: NetworkPlan,
        layout: ConditionLayout,
        *,
        separate_architecture: bool,
        synchronise: Callable[[Iterable[Tensor]], None],
    ) -> Generator:
        """Args: as in `build_generator`."""
        ...


NOT_A_FAMILY = (
    "augmentation",
    "averaging",
    "base",
    "dilation",
    "divergence",
    "flat_style",
    "layout",
    "networks",
    "optimisation",
    "pretrained",
    "smoothing",
)
"""Modules of this package that register no family."""
GENERATORS: Registry[GeneratorFactory] = Registry("generator.name", __package__ or "", exclude=NOT_A_FAMILY)


def build_generator(
    config: GeneratorConfig,
    plan: NetworkPlan,
    layout: ConditionLayout,
    *,
    seed: int,
    device: torch.device,
    separate_architecture: bool,
    synchronise: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
) -> Generator:
    """Builds the generator that `config.name` names; the process's random state is left as it was.

    Args:
        config: the family and its settings.
        plan: the segmentation network's plan.
        layout: channels of conditions and images.
        seed: of the initial weights.
        device: where the generator lives.
        separate_architecture: leave the architecture parameters to the feedback instead of the generator's own steps.
        synchronise: averages gradients over the processes of a distributed training, in place.

    Raises:
        GenSegError: no family has that name.
        ImportError: the family's module does not import or does not register it.
    """
    family = GENERATORS[config.name]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        return family(
            config,
            plan,
            layout,
            separate_architecture=separate_architecture,
            synchronise=synchronise,
        )
