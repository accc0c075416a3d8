"""Which weights a generator's own training moves, and one step of it, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def exclude(weights: Iterable[nn.Parameter], excluded: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The weights that are not among the excluded ones, in their order."""
    identities = {id(weight) for weight in excluded}
    return [weight for weight in weights if id(weight) not in identities]


def adam(parameters: Sequence[nn.Parameter], learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Adam:
    """Adam, with torch's fused kernel where all parameters are on a CUDA device."""
    fused = True if all(parameter.is_cuda for parameter in parameters) else None
    return torch.optim.Adam(parameters, learning_rate, betas, fused=fused)


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser's state, which may come from another device; whether its step is fused stays as it is here."""
    groups = [
        {**there, "fused": here.get("fused")} for there, here in zip(state["param_groups"], optimiser.param_groups, strict=True)
    ]
    optimiser.load_state_dict({**state, "param_groups": groups})


def optimiser_step(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    parameters: Sequence[nn.Parameter],
    synchronise: Callable[[Iterable[Tensor]], None],
) -> Tensor:
    """Moves `parameters`, and nothing else that the loss depends on, one step down the loss. Nothing waits for the device.

    If a gradient is NaN or infinite, all gradients of the step are replaced by zeros. The optimiser's momentum may still move the
    parameters, so the caller has to go back to an earlier state when it reads the flag.

    Args:
        optimiser: of the parameters.
        loss: scalar.
        parameters: each takes part in the loss.
        synchronise: averages tensors over the processes of a distributed training, in place; it gets all gradients in one vector.

    Returns:
        Whether all gradients were finite, on all processes: a 0-d boolean tensor on the device.
    """
    gradients = torch.autograd.grad(loss, parameters)
    vector = torch.cat([gradient.flatten() for gradient in gradients])
    synchronise([vector])
    finite: Tensor = torch.linalg.vector_norm(vector, torch.inf).isfinite()  # one pass; NaN is kept
    vector.masked_fill_(~finite, 0.0)
    pieces = torch.split(vector, [parameter.numel() for parameter in parameters])
    for parameter, gradient in zip(parameters, pieces, strict=True):
        parameter.grad = gradient.view_as(parameter)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return finite
