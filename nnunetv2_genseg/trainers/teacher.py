"""A moving average of the segmentation network, which labels images without labels."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

TIME = 0.015
"""Time constant of the average, as a fraction of all iterations."""


def moving_average(network: nn.Module, iterations: int) -> AveragedModel:
    """An exponential moving average of a network's weights over a training of so many iterations; buffers are the network's."""
    average = get_ema_multi_avg_fn(1 - 1 / max(1.0, TIME * iterations))  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=average)


class Teacher:
    """Labels patches with averaged weights.

    Args:
        network: the segmentation network, neither compiled nor distributed.
        iterations: of the whole training.
    """

    def __init__(self, network: nn.Module, iterations: int) -> None:
        self.average = moving_average(network, iterations)
        self.average.eval()

    def update(self, network: nn.Module) -> None:
        """Takes the weights of `network` into the average."""
        self.average.update_parameters(network)

    @torch.no_grad()
    def __call__(self, network_input: Tensor) -> Tensor:
        """(B, channels, *spatial) input to (B, heads, *spatial) logits of full resolution."""
        with torch.autocast("cuda") if network_input.is_cuda else nullcontext():
            output = self.average(network_input)
        logits: Tensor = output[0] if isinstance(output, (list, tuple)) else output
        return logits

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and how many updates they took."""
        return dict(self.average.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.average.load_state_dict(state)
