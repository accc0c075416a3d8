"""Method `exact`: reverse over reverse through all weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnunetv2_genseg import hypergradient
from nnunetv2_genseg.bilevel.methods.base import METHODS
from nnunetv2_genseg.hypergradient import LossOfLogits, Parameters


@METHODS.register("exact")
def exact(
    network: nn.Module,
    theta: Parameters,
    direction: Parameters,
    phi: Sequence[Tensor],
    image: Tensor,
    loss: LossOfLogits,
    step_size: float,
) -> list[Tensor]:
    """See `FeedbackMethod` and `hypergradient.exact`."""
    return hypergradient.exact(network, theta, direction, phi, image, loss, step_size)
