"""The algorithm of one iteration: which stage it is in, what the batch gets, when the generator and feedback step.

Knows torch and the segmenter as a module with a loss; nothing of nnU-Net.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_genseg import hypergradient
from nnunetv2_genseg.config import GenSegConfig
from nnunetv2_genseg.generators import Generator, NetworkPlan, build_generator
from nnunetv2_genseg.generators.pretrained import Cases, ImageKind, identity, load_pretrained, pretrainable, save_pretrained
from nnunetv2_genseg.labels import LabelCodec
from nnunetv2_genseg.masks import class_sizes
from nnunetv2_genseg.pairs import Pairs, PairSource
from nnunetv2_genseg.policy import weighed_loss
from nnunetv2_genseg.recovery import Recovery
from nnunetv2_genseg.shapes import LearnedShapes

BRIGHTEST = 100.0
"""Largest intensity of synthetic images relative to the real ones of the batch: what is beyond could overflow the segmenter."""

FURTHER = 0.2
"""Half the distance in `log_deformation` between the two drawings whose difference stands for the derivative: labels jump by
whole voxels, so that it must be far enough for many of them to jump."""


ZERO_STEPS = 100
"""Feedback steps in a row that are zero, after which nothing is learnt from the held-aside cases."""

LARGEST_SHARE = "largest share of a kernel"
"""What is noted of an architecture: 1 / 3 at the start, 1 if a kernel of three is chosen."""


@dataclass(frozen=True)
class Segmenter:
    """The segmentation network as the feedback needs it: looked at, never changed, differentiable twice."""

    network: nn.Module
    """Neither compiled nor distributed, in float32."""
    loss: Callable[[hypergradient.Logits, Any], Tensor]
    """Of logits and targets, on this process alone."""
    to_input: Callable[[Tensor, Tensor], Tensor]
    """(B, C, *spatial) images and (B, *spatial) class maps to the network's input, which holds more channels in a cascade."""
    to_target: Callable[[Tensor], Any]
    """(B, *spatial) class maps to the target of the loss, a list with deep supervision."""


@dataclass(frozen=True)
class Stage:
    """What happens at a moment of the training."""

    gamma: float
    """Weight of the synthetic loss; 0 if the segmenter sees real data alone."""
    feedback: bool
    """Whether feedback steps are due."""
    tail: bool
    """Whether the real-only tail has begun."""


def stage_at(progress: float, config: GenSegConfig) -> Stage:
    """The stage after the fraction `progress` in [0, 1) of all iterations."""
    schedule = config.schedule
    tail = progress >= 1 - schedule.tail
    if tail or progress < schedule.warmup:
        return Stage(0.0, False, tail)
    risen = (progress - schedule.warmup) / schedule.ramp if schedule.ramp else 1.0
    gamma = config.mixing.gamma * min(1.0, risen)
    # at the ramp's first iteration the weight is not yet above 0: the batch stays real, feedback would be zero
    start, end = config.feedback_span
    return Stage(gamma, config.feedback.enabled and gamma > 0 and start <= progress < end, False)


class Coupling:
    """Owns the generator, the drawing policy and the feedback; the segmenter is looked at, never changed.

    Args:
        config: all settings.
        plan: the segmentation network's plan.
        codec: the dataset's classes.
        image_channels: channels of the image.
        device: where everything lives.
        rank: number of this process in a distributed training; processes draw differently and learn alike.
        synchronise: averages tensors over the processes, in place.
        masked_channels: image channels that are 0 outside of the subject.
    """

    def __init__(
        self,
        config: GenSegConfig,
        plan: NetworkPlan,
        codec: LabelCodec,
        image_channels: int,
        device: torch.device,
        rank: int = 0,
        synchronise: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
        masked_channels: tuple[int, ...] = (),
    ) -> None:
        self.config = config
        self.plan = plan
        self.codec = codec
        self.synchronise = synchronise
        self.shapes: LearnedShapes | None = None
        """None unless masks are learned."""
        if config.masks.source == "learned":
            self.shapes = LearnedShapes(
                codec.foreground, plan.patch_size, seed=config.seed, device=device, synchronise=synchronise
            )
        self.pairs = PairSource(
            codec,
            image_channels,
            config.conditioning,
            config.masks,
            plan.movable_axes,
            device,
            masked_channels,
            self.shapes,
            synchronise,
        )
        feedback = config.feedback
        self.generator: Generator | None = None
        """None in mode `deformation`."""
        if self.pairs.needs_generator:
            self.generator = build_generator(
                config.generator,
                plan,
                self.pairs.layout,
                seed=config.seed,
                device=device,
                separate_architecture=feedback.enabled and feedback.parameters == "architecture",
                synchronise=synchronise,
            )
        self.rank = rank
        self.rng = torch.Generator(device).manual_seed(config.seed + 7919 * rank)
        self.phi = self._phi() if feedback.enabled else []
        self.pairs.policy.requires_grad_(feedback.enabled and feedback.parameters == "policy")
        self.phi_optimizer = torch.optim.Adam(self.phi, feedback.learning_rate, (0.5, 0.999)) if self.phi else None
        self.recovery = Recovery(self._learned, self._restore_learned)
        self.losses: dict[str, list[float]] = defaultdict(list)
        """What was measured since `report` was last called."""
        self._zero_steps = 0

    def _phi(self) -> list[nn.Parameter]:
        if self.config.feedback.parameters == "policy":
            if not self.pairs.shows_policy:
                raise ValueError(
                    "feedback.parameters is 'policy', but with one class, without conditioning.tone and masks.elastic, and in "
                    f"mode {self.config.conditioning.mode!r} with nothing that shows a generator, no pair depends on it; set one "
                    "of the two above 0, or feedback.enabled to false"
                )
            return list(self.pairs.policy.parameters())
        if self.generator is None:
            raise ValueError(
                f"feedback.parameters is {self.config.feedback.parameters!r}, but conditioning.mode 'deformation' has no "
                "generator; choose feedback.parameters 'policy' or another mode"
            )
        if not self.pairs.shows_generator:
            raise ValueError(
                f"feedback.parameters is {self.config.feedback.parameters!r}, but in mode 'differential' without "
                "conditioning.intensity_shift, masks.growth and masks.recombination what the generator draws cancels; set one "
                "of them above 0, masks.source to 'learned', or feedback.parameters to 'policy'"
            )
        architecture = self.config.feedback.parameters == "architecture"
        phi = self.generator.architecture() if architecture else self.generator.weights()
        if not phi:
            raise ValueError(
                f"feedback.parameters is {self.config.feedback.parameters!r}, but generator "
                f"{self.config.generator.name!r} has no such parameters; choose another"
            )
        return phi

    def trained_alone(self) -> Generator:
        """The generator, if it can be trained alone and kept.

        Raises:
            ValueError: there is none, or it has no weights.
        """
        if self.generator is None:
            raise ValueError(
                "conditioning.mode 'deformation' has no generator to train or load; choose another mode, without "
                "generator.pretrained if it is set"
            )
        pretrainable(self.generator, self.config.generator.name)
        return self.generator

    def start_from(self, folder: Path, images: ImageKind) -> Cases:
        """Starts with the weights of a trained generator, also after a fault; all else of its training begins anew.

        Args:
            folder: from `keep_generator`.
            images: what the training's images are.

        Returns:
            What it was trained on.

        Raises:
            ValueError: the folder holds no trained generator, or one that does not fit or is not finite.
        """
        trained_on = load_pretrained(self.trained_alone(), folder, self._identity(images))
        self.recovery.keep()
        return trained_on

    def keep_generator(self, folder: Path, images: ImageKind, cases: Cases) -> None:
        """Writes the generator, trained on `cases`, into a folder for `start_from`; the other arguments as there."""
        save_pretrained(self.trained_alone(), folder, self._identity(images), cases)

    def _identity(self, images: ImageKind) -> dict[str, Any]:
        return identity(self.config.generator, self.plan, self.pairs.layout, images)

    def synthetic_count(self, batch_size: int) -> int:
        """How many synthetic patches a batch of `batch_size` real ones gets."""
        return max(1, round(self.config.mixing.share * batch_size))

    @torch.no_grad()
    def draw(self, image: Tensor, labels: Tensor, count: int) -> Pairs:
        """Draws `count` synthetic pairs from the last patches of a batch, cycling through them; without graph.

        The last ones are those that nnU-Net's loader makes sure to hold foreground.

        Raises:
            FloatingPointError: the generator drew NaN, infinity, or what the segmenter's numbers could not hold.
        """
        source = torch.arange(-count, 0, device=image.device) % len(image)
        pairs = self.pairs.draw(self.generator, image[source], labels[source], self.rng)
        if not (pairs.image.abs() <= BRIGHTEST * image.abs().amax().clamp(min=1)).all():
            raise FloatingPointError("a synthetic image holds NaN, infinity or intensities far from the real ones")
        return pairs

    def learn(self, image: Tensor, labels: Tensor) -> None:
        """The generator's own step on the real pairs of a batch, and that of the learned masks."""
        self.pairs.observe(image, labels)
        if self.generator is None:
            return
        with torch.no_grad():
            image = self.pairs.standardised(image)
            condition = self.pairs.real_condition(image, labels)
            style = self.pairs.style(self.generator, image, self.rng)
        self._note(self.generator.learn(condition, image, style))
        if self.shapes is not None:
            self._note(self.shapes.learn(labels, self.rng))

    def synthetic_loss(self, logits: hypergradient.Logits, labels: Tensor, segmenter: Segmenter) -> Tensor:
        """L_syn: the segmentation loss of synthetic pairs, each with its worth where the policy weighs classes."""
        worth, target = self.worth(labels), segmenter.to_target(labels)
        return segmenter.loss(logits, target) if worth is None else weighed_loss(segmenter.loss, logits, target, worth)

    def worth(self, labels: Tensor) -> Tensor | None:
        """(B,) what synthetic pairs with the class maps (B, *spatial) weigh; None if the feedback does not move it."""
        if self.config.feedback.parameters != "policy" or not self.config.feedback.enabled:
            return None
        return self.pairs.policy.worth(class_sizes(labels, self.codec.classes)[:, 1 : 1 + self.codec.foreground])

    def feedback(
        self,
        segmenter: Segmenter,
        image: Tensor,
        labels: Tensor,
        held_input: Tensor,
        held_labels: Tensor,
        gamma: float,
        step_size: float,
    ) -> None:
        """One feedback step: moves φ so that the segmenter's next step lowers the loss on held-aside cases.

        Args:
            segmenter: the network, its loss and its targets.
            image: (B, C, *spatial) real training patches, from which synthetic pairs are drawn.
            labels: (B, *spatial) their class maps.
            held_input: (B', channels of the network's input, *spatial) patches of held-aside cases.
            held_labels: (B', *spatial) their class maps.
            gamma: weight of the synthetic loss at this moment.
            step_size: the segmenter's learning rate, η.

        Raises:
            RuntimeError: the hypergradient is detached, or was zero `ZERO_STEPS` times in a row.
            FloatingPointError: it is not finite, on any process and then on all of them; φ was not moved.
        """
        if self.phi_optimizer is None:
            raise RuntimeError("feedback is not enabled")
        settings = self.config.feedback
        network, theta = segmenter.network, dict(segmenter.network.named_parameters())
        before = self.rng.get_state()

        def posed(pairs: Pairs) -> tuple[Tensor, hypergradient.LossOfLogits]:
            """The segmenter's input and its loss."""

            def on_synthetic(logits: hypergradient.Logits) -> Tensor:
                return gamma * self.synthetic_loss(logits, pairs.labels, segmenter)

            return segmenter.to_input(pairs.image, pairs.labels), on_synthetic

        with torch.enable_grad():
            synthetic, on_synthetic = posed(self.pairs.draw(self.generator, image, labels, self.rng))

            def on_held(logits: hypergradient.Logits) -> Tensor:
                value = segmenter.loss(logits, segmenter.to_target(held_labels))
                self._note({"feedback": value.item()})
                return value

            point: hypergradient.Parameters = theta
            if settings.lookahead:
                slope = hypergradient.segmenter_gradient(network, theta, synthetic.detach(), on_synthetic)
                self.synchronise(slope.values())
                point = hypergradient.step_ahead(theta, slope, step_size)
            direction = hypergradient.segmenter_gradient(network, point, held_input, on_held)
            self.synchronise(direction.values())
            if settings.method == "last_layers":
                direction = hypergradient.last_layers(theta, direction)
            method = hypergradient.finite_difference if settings.method == "finite_difference" else hypergradient.exact
            gradient = method(network, theta, direction, self.phi, synthetic, on_synthetic, step_size)
            if settings.parameters == "policy" and self.pairs.deforms:
                more, less = self._drawn_around(image, labels, before)
                if not (torch.equal(more.image, less.image) and torch.equal(more.labels, less.labels)):
                    sides = [hypergradient.alignment(network, theta, direction, *posed(pairs)) for pairs in (more, less)]
                    deformation = next(i for i, own in enumerate(self.phi) if own is self.pairs.policy.log_deformation)
                    gradient[deformation] = -step_size * (sides[0] - sides[1]) / (2 * FURTHER)
        self.synchronise(gradient)
        norm = hypergradient.finite_norm(gradient)
        self._note({"hypergradient": norm})
        self._zero_steps = self._zero_steps + 1 if norm == 0 else 0
        if self._zero_steps == ZERO_STEPS:
            raise RuntimeError("feedback is zero: nothing is learnt from the held-aside cases; change how pairs are drawn")
        if norm == 0:
            return  # no change of these patches shows the generator
        for parameter, part in zip(self.phi, gradient, strict=True):
            parameter.grad = part
        self.phi_optimizer.step()
        self.phi_optimizer.zero_grad(set_to_none=True)
        if settings.parameters == "policy":
            self._note(self.pairs.policy.factors())
        elif settings.parameters == "architecture":
            shares = torch.stack([alpha.detach().softmax(dim=-1).max() for alpha in self.phi])
            self._note({LARGEST_SHARE: float(shares.max())})

    @torch.no_grad()
    def _drawn_around(self, image: Tensor, labels: Tensor, state: Tensor) -> tuple[Pairs, Pairs]:
        """The same pairs deformed more and less, both drawn from one random state."""
        after = self.rng.get_state()

        def drawn(further: float) -> Pairs:
            self.rng.set_state(state)
            with self.pairs.policy.deforming(further):
                return self.pairs.draw(self.generator, image, labels, self.rng)

        try:
            return drawn(FURTHER), drawn(-FURTHER)
        finally:
            self.rng.set_state(after)

    def note(self, name: str, value: float) -> None:
        """Adds a measured value to the next `report`."""
        self._note({name: value})

    def _note(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.losses[name].append(value)

    def report(self) -> dict[str, float]:
        """Mean of every value since the last call, by name; empties the record."""
        means = {name: math.fsum(values) / len(values) for name, values in self.losses.items() if values}
        self.losses.clear()
        return means

    def _learned(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state() if self.generator else None,
            "shapes": self.shapes.state() if self.shapes else None,
            "policy": dict(self.pairs.policy.state_dict()),
            "phi_optimizer": self.phi_optimizer.state_dict() if self.phi_optimizer else None,
        }

    def _restore_learned(self, state: dict[str, Any]) -> None:
        if self.generator is not None:
            self.generator.restore(state["generator"])
        if self.shapes is not None:
            self.shapes.restore(state["shapes"])
        self.pairs.policy.load_state_dict(state["policy"])
        if self.phi_optimizer is not None:
            self.phi_optimizer.load_state_dict(state["phi_optimizer"])

    def state(self) -> dict[str, Any]:
        """Everything that a resumed training needs, in tensors, numbers, strings, lists and dictionaries."""
        return {
            "learned": self._learned(),
            "variance": self.pairs.variance,
            "observed": self.pairs.observed,
            "largest": self.pairs.largest,
            "topology": self.pairs.topology.state(),
            "rng": self.rng.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._restore_learned(state["learned"])
        self.recovery.keep()
        self.pairs.variance.copy_(state["variance"])
        self.pairs.observed.copy_(state["observed"])
        self.pairs.largest.copy_(state["largest"])
        self.pairs.topology.restore(state["topology"])
        self.rng.set_state(state["rng"])
        if self.rank:  # the state is the first process's
            drawn = int(torch.randint(2**31, (), generator=self.rng, device=self.rng.device))
            self.rng.manual_seed(drawn + 7919 * self.rank)
