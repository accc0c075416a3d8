"""One feedback step: moves φ so that the segmentation network's next step lowers the loss on held-out cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_genseg import hypergradient
from nnunetv2_genseg.config import FeedbackConfig, GenSegError
from nnunetv2_genseg.hypergradient import LossOfLogits
from nnunetv2_genseg.synthesis.pairs import Pairs
from nnunetv2_genseg.synthesis.sampler import PairSampler

STEP = 0.2
"""Half the distance in `log_deformation` between the two drawings whose difference stands for the derivative: labels jump by
whole voxels, so that it must be large enough for many of them to jump."""
ZERO_STEPS = 100
"""Feedback steps in a row that are zero, after which feedback is switched off."""


@dataclass(frozen=True)
class Segmenter:
    """The segmentation network as the feedback needs it: read, never changed."""

    network: nn.Module
    """Neither compiled nor distributed, in float32."""
    loss: Callable[[hypergradient.Logits, Any], Tensor]
    """Of logits and targets, on this process alone."""
    to_input: Callable[[Tensor, Tensor], Tensor]
    """(B, C, *spatial) images and (B, *spatial) class maps to the network's input, which holds more channels in a cascade."""
    to_target: Callable[[Tensor], Any]
    """(B, *spatial) class maps to the target of the loss, a list with deep supervision."""
    shares: Mapping[str, float] | None = None
    """Learning rate of each weight relative to the step size, by name; a weight that is not there makes no step. None: all
    weights that require a gradient have the same rate."""

    def of_the_step(self, gradient: hypergradient.Parameters) -> hypergradient.Parameters:
        """A gradient by name, scaled to the step that the weights make."""
        if self.shares is None:
            return gradient
        return {name: share * gradient[name] for name, share in self.shares.items()}


@dataclass(frozen=True)
class HeldOutBatch:
    """Real patches of held-out cases."""

    network_input: Tensor
    """(B, channels of the network's input, *spatial)."""
    labels: Tensor
    """(B, *spatial) int64 class maps."""


class Feedback:
    """Owns φ's optimiser; φ belongs to the sampler.

    Args:
        config: what is moved, and how.
        sampler: draws the synthetic pairs.
        synchronise: averages tensors over the processes of a distributed training, in place.

    Raises:
        GenSegError: nothing that is drawn depends on φ.
    """

    def __init__(self, config: FeedbackConfig, sampler: PairSampler, synchronise: Callable[[Iterable[Tensor]], None]) -> None:
        self.config = config
        self.sampler = sampler
        self.synchronise = synchronise
        self.active = True
        """False after it was zero `ZERO_STEPS` times in a row."""
        self._zero_steps = 0
        self.phi = self._phi()
        self.optimizer = torch.optim.Adam(self.phi, config.rate, (0.5, 0.999))

    def _phi(self) -> list[nn.Parameter]:
        if self.config.parameters == "policy":
            if not (self._moves_deformation or self._moves_style):
                raise GenSegError(
                    "feedback.parameters is 'policy', but without deformation.displacement, intensity.tone and a source that "
                    "shows a generator no pair depends on it; set one of them above 0, or feedback.enabled to false"
                )
            return list(self.sampler.policy.parameters())
        sources = [source for source in self.sampler.sources.values() if source.generator is not None]
        named = f"feedback.parameters is {self.config.parameters!r}"
        if not sources:
            raise GenSegError(
                f"{named}, but mixing.sources has no source with a generator; add `redraw`, choose feedback.parameters 'policy', "
                "or set feedback.enabled to false"
            )
        if not any(source.shows_generator for source in sources):
            raise GenSegError(
                f"{named}, but in redraw.mode 'residual' without intensity.shift what the generator draws cancels; set it above "
                "0, choose another mode, or set feedback.enabled to false"
            )
        phi = []
        for source in sources:
            assert source.generator is not None
            architecture = self.config.parameters == "architecture"
            phi += source.generator.architecture() if architecture else source.generator.weights()
        if not phi:
            family = self.sampler.config.generator.name
            raise GenSegError(f"{named}, but generator {family!r} has no such parameters; choose another")
        return phi

    @property
    def _moves_deformation(self) -> bool:
        config = self.sampler.config
        return config.deformation.displacement > 0 or config.masks.source != "real"

    @property
    def _moves_style(self) -> bool:
        shows = any(source.shows_generator for source in self.sampler.sources.values())
        return self.sampler.config.intensity.tone > 0 or shows

    def choose(self, count: int, rng: torch.Generator) -> dict[str, list[int]]:
        """The source of each pair of a micro-batch.

        For weights and architecture: only sources that show the generator. For the policy: as in training.

        Args:
            count: patches of the micro-batch.
            rng: on the CPU.
        """
        if self.config.parameters == "policy":
            return self.sampler.choose(count, 1.0, rng)
        showing = [name for name, source in self.sampler.sources.items() if source.shows_generator]
        chosen = {name: [i for i in range(count) if i % len(showing) == k] for k, name in enumerate(showing)}
        return {name: slots for name, slots in chosen.items() if slots}

    def step(
        self,
        segmenter: Segmenter,
        image: Tensor,
        labels: Tensor,
        held_out: HeldOutBatch,
        step_size: float,
        chosen: dict[str, list[int]],
        rng: torch.Generator,
    ) -> dict[str, float | Tensor]:
        """Moves φ.

        Args:
            segmenter: the network, its loss and its targets.
            image: (B, C, *spatial) real training patches, from which synthetic pairs are made.
            labels: (B, *spatial) int64 their class maps.
            held_out: patches of held-out cases.
            step_size: the segmentation network's largest learning rate, η.
            chosen: from `choose`.
            rng: on the device.

        Returns:
            What was measured, by name; without graph.

        Raises:
            RuntimeError: the hypergradient is detached from φ.
            FloatingPointError: it is not finite, on any process and then on all of them; φ was not moved.
        """
        network, theta = segmenter.network, dict(segmenter.network.named_parameters())
        before = rng.get_state()
        losses: dict[str, list[Tensor]] = defaultdict(list)

        def on_held_out(logits: hypergradient.Logits) -> Tensor:
            value = segmenter.loss(logits, segmenter.to_target(held_out.labels))
            losses["loss_heldout"].append(value.detach())
            return value

        def on_synthetic(logits: hypergradient.Logits) -> Tensor:
            value = loss(logits)
            losses["loss_synthetic"].append(value.detach())
            return value

        with torch.enable_grad():
            network_input, loss = _task(segmenter, self.sampler.replace(image, labels, chosen, rng).pairs)
            direction: hypergradient.Parameters = hypergradient.segmenter_gradient(
                network, theta, held_out.network_input, on_held_out
            )
            self.synchronise(direction.values())
            direction = segmenter.of_the_step(direction)
            if network_input.requires_grad:
                gradient = hypergradient.hypergradient(
                    network, theta, direction, self.phi, network_input, on_synthetic, step_size
                )
            else:  # of a policy: no pair of this micro-batch has a style
                gradient = [torch.zeros_like(own) for own in self.phi]
            if self.config.parameters == "policy" and self._moves_deformation:
                slope = self._deformation_slope(segmenter, image, labels, direction, chosen, rng, before)
                place = next(i for i, own in enumerate(self.phi) if own is self.sampler.policy.log_deformation)
                gradient[place] = -step_size * slope
        self.synchronise(gradient)
        norm = hypergradient.finite_norm(gradient)
        self._zero_steps = self._zero_steps + 1 if norm == 0 else 0
        self.active = self._zero_steps < ZERO_STEPS
        if norm > 0:  # Adam would go on by its momentum
            self._descend(gradient)
        means = {name: torch.stack(values).mean() for name, values in losses.items()}
        return {**means, "hypergradient_norm": norm, **self._chosen()}

    def _descend(self, gradient: list[Tensor]) -> None:
        for parameter, part in zip(self.phi, gradient, strict=True):
            parameter.grad = part
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _chosen(self) -> dict[str, Tensor]:
        """What the feedback has moved so far, by name."""
        if self.config.parameters == "policy":
            return self.sampler.policy.factors()
        if self.config.parameters == "architecture":
            return {"largest_kernel_share": torch.stack([alpha.softmax(dim=-1).max() for alpha in self.phi]).max()}
        return {}

    def _deformation_slope(
        self,
        segmenter: Segmenter,
        image: Tensor,
        labels: Tensor,
        direction: hypergradient.Parameters,
        chosen: dict[str, list[int]],
        rng: torch.Generator,
        state: Tensor,
    ) -> Tensor:
        """Derivative of ⟨∇_θ L_syn, v⟩ by `log_deformation`: a central difference of pairs from one random state."""
        after = rng.get_state()

        def deformed(further: float) -> Pairs:
            rng.set_state(state)
            with torch.no_grad(), self.sampler.policy.deforming(further):
                return self.sampler.replace(image, labels, chosen, rng).pairs

        def aligned(pairs: Pairs) -> Tensor:
            network_input, loss = _task(segmenter, pairs)
            theta = dict(segmenter.network.named_parameters())
            return hypergradient.alignment(segmenter.network, theta, direction, network_input, loss)

        try:
            more, less = deformed(STEP), deformed(-STEP)
            if torch.equal(more.grid, less.grid) and torch.equal(more.labels, less.labels):
                return torch.zeros((), device=rng.device)  # rounding of two equal passes would make a whole step of Adam
            return (aligned(more) - aligned(less)) / (2 * STEP)
        finally:
            rng.set_state(after)

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and whether it is active; φ itself is in the sampler's state."""
        return {"optimizer": self.optimizer.state_dict(), "zero_steps": self._zero_steps, "active": self.active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._zero_steps, self.active = state["zero_steps"], state["active"]


def _task(segmenter: Segmenter, pairs: Pairs) -> tuple[Tensor, LossOfLogits]:
    """The network's input for synthetic pairs, and the loss of its logits."""
    target = segmenter.to_target(pairs.labels)
    return segmenter.to_input(pairs.image, pairs.labels), lambda logits: segmenter.loss(logits, target)
