"""What every feedback method is, and the registry that finds one by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from nnunetv2_genseg.hypergradient import LossOfLogits, Parameters
from nnunetv2_genseg.registry import Registry


class FeedbackMethod(Protocol):
    """A function that computes how the held-out loss depends on φ."""

    def __call__(
        self,
        network: nn.Module,
        theta: Parameters,
        direction: Parameters,
        phi: Sequence[Tensor],
        image: Tensor,
        loss: LossOfLogits,
        step_size: float,
    ) -> list[Tensor]:
        """The hypergradient, one tensor for each of `phi`.

        Args:
            network: the segmentation network, not compiled.
            theta: its weights by name.
            direction: ∇_θ of the held-out loss, by name.
            phi: what to differentiate by; `image` or `loss` was computed from it.
            image: (B, C, *spatial) synthetic images, with graph.
            loss: of the logits, may depend on φ.
            step_size: the segmentation network's learning rate, η.
        """
        ...


METHODS: Registry[FeedbackMethod] = Registry("feedback.method", __package__ or "")
