"""Method `last_layers`: exact, through the decoder's last stage and the segmentation heads only. It needs less memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnunetv2_genseg import hypergradient
from nnunetv2_genseg.bilevel.methods.base import METHODS
from nnunetv2_genseg.hypergradient import LossOfLogits, Parameters


@METHODS.register("last_layers")
def last_layers(
    network: nn.Module,
    theta: Parameters,
    direction: Parameters,
    phi: Sequence[Tensor],
    image: Tensor,
    loss: LossOfLogits,
    step_size: float,
) -> list[Tensor]:
    """See `FeedbackMethod` and `hypergradient.last_layers`."""
    chosen = hypergradient.last_layers(theta, direction)
    return hypergradient.exact(network, theta, chosen, phi, image, loss, step_size)
