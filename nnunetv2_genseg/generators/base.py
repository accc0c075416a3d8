"""What every generator family offers, and the registry that finds one by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nnunetv2_genseg.conditioning import ConditionLayout
from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators.networks import NetworkPlan


class Generator(Protocol):
    """Draws images from conditions and learns to from real pairs."""

    def style_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Shape of one patch's style noise, for patches of this extent."""

    def draw(self, condition: Tensor, style: Tensor) -> Tensor:
        """(B, layout.channels, *spatial) and (B, *style_shape) to (B, layout.image_channels, *spatial), for any B, every patch
        by itself; differentiable in the condition, the style and the generator's parameters."""

    def learn(self, condition: Tensor, image: Tensor, style: Tensor) -> dict[str, float]:
        """One optimisation step on real pairs; the losses by name."""

    def architecture(self) -> list[nn.Parameter]:
        """Logits, a vector for every choice between operations, mixed by their softmax; empty for a family without any."""

    def weights(self) -> list[nn.Parameter]:
        """All parameters of what `draw` runs through."""

    def state(self) -> dict[str, Any]:
        """Everything that a resumed training needs: tensors, numbers, strings, lists and dictionaries only."""

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, whose tensors may come from another device."""


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


BUILT_IN = {name: f"nnunetv2_genseg.generators.{name}" for name in ("diffusion", "gan", "gmm", "vae")}
"""Modules of the families that this package ships."""
ENTRY_POINTS = "nnunetv2_genseg.generators"
"""Group of the entry points by which other packages add theirs: `my_family = "my_package.my_module"`."""

_REGISTRY: dict[str, GeneratorFactory] = {}


def register(name: str) -> Callable[[GeneratorFactory], GeneratorFactory]:
    """Decorator: makes a family selectable as `generator.name`."""

    def add(factory: GeneratorFactory) -> GeneratorFactory:
        if name in _REGISTRY:
            raise RuntimeError(f"generator {name!r} is registered twice")
        _REGISTRY[name] = factory
        return factory

    return add


def _modules() -> dict[str, str]:
    """Modules by the name of the family that they register. A module is imported when its family is built, not before."""
    return {point.name: point.module for point in entry_points(group=ENTRY_POINTS)} | BUILT_IN


def registered() -> list[str]:
    """Names of all families, sorted, those of other packages' entry points among them."""
    return sorted({*_REGISTRY, *_modules()})


def _family(name: str) -> GeneratorFactory:
    """The family of that name, its module imported if need be."""
    module = _modules().get(name)
    if module:
        try:
            import_module(module)
        except Exception as error:
            raise ImportError(f"generator {name!r}: {module} does not import: {error}") from error
        if name not in _REGISTRY:
            raise ImportError(f"generator {name!r}: {module} does not register it; decorate its class with @register")
    if name not in _REGISTRY:
        raise ValueError(f"generator.name: no generator {name!r}; registered are {', '.join(registered())}")
    return _REGISTRY[name]


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
        ValueError: no family has that name.
        ImportError: the family's module does not import or does not register it.
    """
    family = _family(config.name)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        return family(
            config,
            plan,
            layout,
            separate_architecture=separate_architecture,
            synchronise=synchronise,
        )
