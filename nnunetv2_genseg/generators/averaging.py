"""A moving average of a network's weights, with which images are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DECAY = 0.999
"""Weight of the old average at every update; lower in the first updates, so that the random weights are soon forgotten."""


class MovingAverage:
    """The exponential moving average of a network's weights, kept as its lag behind them: average = weight + lag.

    When the feedback changes the weights, the average changes by the same amount, and gradients pass from the average to
    the weights unchanged. `torch.optim.swa_utils.AveragedModel` does neither.

    Args:
        network: its parameters are averaged; its buffers are not.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.reset()

    def reset(self) -> None:
        """Makes the average equal to the weights."""
        self.lag = {name: torch.zeros_like(weight) for name, weight in self.network.named_parameters()}
        """Average minus weight, by the parameter's name."""
        self.updates = 0

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, with graph to the network's parameters."""
        return {name: weight + self.lag[name] for name, weight in self.network.named_parameters()}

    @contextmanager
    def updated(self) -> Iterator[None]:
        """Updates the average after the block, in which an optimiser moves the network's parameters."""
        lag = list(self.lag.values())
        weights = [weight.detach() for weight in self.network.parameters()]
        torch._foreach_add_(lag, weights)  # the average, for the time of the block
        try:
            yield
        finally:
            torch._foreach_sub_(lag, weights)
        torch._foreach_mul_(lag, min(DECAY, (1 + self.updates) / (10 + self.updates)))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The lag and the number of updates."""
        return {"lag": dict(self.lag), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, whose tensors may come from another device."""
        for name, lag in state["lag"].items():
            self.lag[name].copy_(lag)
        self.updates = state["updates"]
