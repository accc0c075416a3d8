"""Which weights a generator's own training moves, and one step of it, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


def without(weights: Iterable[nn.Parameter], left_out: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The weights that are not among those left out, in their order."""
    identities = {id(weight) for weight in left_out}
    return [weight for weight in weights if id(weight) not in identities]


def descend(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    parameters: Sequence[nn.Parameter],
    synchronise: Callable[[Iterable[Tensor]], None],
) -> None:
    """Moves `parameters`, and nothing else that the loss depends on, one step down the loss.

    Args:
        optimizer: of the parameters.
        loss: scalar.
        parameters: each takes part in the loss.
        synchronise: averages the gradients over the processes of a distributed training, in place.

    Raises:
        FloatingPointError: a gradient is NaN or infinite, on any process and then on all of them; nothing was moved.
    """
    gradients = torch.autograd.grad(loss, parameters)
    synchronise(gradients)
    if not torch.stack([gradient.abs().amax() for gradient in gradients]).isfinite().all():
        raise FloatingPointError(f"a gradient of the generator's training is not finite; its loss is {loss.item()}")
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
