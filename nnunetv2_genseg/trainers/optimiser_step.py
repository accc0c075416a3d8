"""The step of the host trainer's optimiser, as the feedback models it: learning rate times gradient, for what moves."""

from __future__ import annotations

from typing import Any

from torch import nn


def modelled_step(network: nn.Module, optimizer: Any) -> tuple[float, dict[str, float]]:
    """The optimiser's step, its momentum, adaptive scaling, weight decay and clipping left out.

    Args:
        network: neither compiled nor distributed.
        optimizer: any of torch's, with groups of weights that have learning rates of their own.

    Returns:
        The largest learning rate, and the learning rate of every weight relative to it, by name. Frozen weights, those that are
        in no group, and those with a rate of 0 are not there; if nothing moves, the rate is 0.
    """
    rates = {id(weight): float(group["lr"]) for group in optimizer.param_groups for weight in group["params"]}
    moving = {name: rates.get(id(weight), 0.0) for name, weight in network.named_parameters() if weight.requires_grad}
    largest = max(moving.values(), default=0.0)
    return largest, {name: rate / largest for name, rate in moving.items() if rate > 0}
