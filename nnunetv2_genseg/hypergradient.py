"""How the loss on held-out cases depends on the generator, through one step of the segmentation network: pure functions.

With θ the segmentation network's weights, φ the generator's parameters and v = ∇_θ L_fb(θ) the gradient of the loss on held-out
cases, a step of size η on the synthetic loss L_syn(θ, φ) gives

    dL_fb/dφ = −η · ∂/∂φ ⟨∇_θ L_syn(θ, φ), v⟩

(Liu, Simonyan and Yang, DARTS, ICLR 2019, equations 6 to 8, without the term of the direct dependence, which is zero
here). Nothing in this file changes a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nnunetv2_genseg.config import GenSegError

Parameters = Mapping[str, Tensor]
Logits = Tensor | list[Tensor]
"""One tensor (B, classes, *spatial), or a list of them with deep supervision."""
LossOfLogits = Callable[[Logits], Tensor]

composed_attention: Callable[[], AbstractContextManager[Any]]
"""Inside it attention is computed by operations that can be differentiated twice; torch's fused ones cannot."""
try:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    composed_attention = partial(sdpa_kernel, SDPBackend.MATH)
except ImportError:  # torch before 2.3
    composed_attention = partial(torch.backends.cuda.sdp_kernel, enable_flash=False, enable_mem_efficient=False)


def segmenter_gradient(network: nn.Module, theta: Parameters, image: Tensor, loss: LossOfLogits) -> dict[str, Tensor]:
    """∇_θ of a loss at given weights.

    Args:
        network: the segmentation network; its own weights are neither used where `theta` replaces them nor changed.
        theta: weights by name; the gradient is taken by those that require one, since a frozen weight makes no step.
        image: (B, C, *spatial).
        loss: of the logits.

    Returns:
        The gradient by name; zeros for weights that the loss does not depend on (the auxiliary heads that deep
        supervision gives no weight).
    """
    moving = [name for name, weight in theta.items() if weight.requires_grad]
    leaves = {name: weight.detach().requires_grad_(weight.requires_grad) for name, weight in theta.items()}
    value = loss(_output(network, leaves, image))
    chosen = [leaves[name] for name in moving]
    gradients = torch.autograd.grad(value, chosen, allow_unused=True, materialize_grads=True)
    return {name: gradient.detach() for name, gradient in zip(moving, gradients, strict=True)}


def exact(
    network: nn.Module,
    theta: Parameters,
    direction: Parameters,
    phi: Sequence[Tensor],
    image: Tensor,
    loss: LossOfLogits,
    step_size: float,
) -> list[Tensor]:
    """The hypergradient by reverse over reverse: ∇_θ L_syn with graph, its product with v, back to φ.

    Forward over reverse would need less memory, but torch's forward-mode derivative of instance norm cannot be
    differentiated once more by its input: tests/unit/test_hypergradient.py fails with it (torch 2.15).

    Args:
        network: the segmentation network, not compiled.
        theta: its weights by name; those without an entry in `direction` are constants.
        direction: v by name. Only the last layers' entries make `last_layers` of this function.
        phi: what to differentiate by; `image` or `loss` was computed from it.
        image: (B, C, *spatial) synthetic images, with graph.
        loss: of the logits, may depend on φ.
        step_size: η.

    Returns:
        dL_fb/dφ, one tensor for each of `phi`.

    Raises:
        RuntimeError: nothing of `phi` is reached.
    """
    product = alignment(network, theta, direction, image, loss, differentiable=True)
    return [-step_size * part for part in _gradient(product, phi)]


def alignment(
    network: nn.Module,
    theta: Parameters,
    direction: Parameters,
    image: Tensor,
    loss: LossOfLogits,
    differentiable: bool = False,
) -> Tensor:
    """⟨∇_θ L_syn, v⟩: by how much a step on synthetic pairs lowers the held-out loss, divided by η.

    Args: as in `exact`; with `differentiable` the result has a graph to what `image` and `loss` were computed from.
    """
    weights = {name: weight.detach().requires_grad_(name in direction) for name, weight in theta.items()}
    value = loss(_output(network, weights, image))
    chosen = [weights[name] for name in direction]
    slopes = torch.autograd.grad(value, chosen, create_graph=differentiable, allow_unused=True, materialize_grads=True)
    return torch.stack([(slope * part).sum() for slope, part in zip(slopes, direction.values(), strict=True)]).sum()


def last_layers(theta: Parameters, direction: Parameters) -> dict[str, Tensor]:
    """`direction` cut down to the decoder's last stage and the segmentation heads of nnU-Net's networks.

    Raises:
        GenSegError: the network has no such layers.
    """
    last_stage = max((int(name.split(".")[2]) for name in theta if name.startswith("decoder.stages.")), default=-1)
    prefixes = (f"decoder.stages.{last_stage}.", "decoder.seg_layers.")
    chosen = {name: part for name, part in direction.items() if name.startswith(prefixes)}
    if not chosen:
        raise GenSegError(
            "feedback.method last_layers needs a network with decoder.stages and decoder.seg_layers, as nnU-Net's have; use exact"
        )
    return chosen


def finite_norm(parts: Sequence[Tensor], what: str = "the hypergradient") -> float:
    """The norm of a vector.

    Raises:
        FloatingPointError: it is not finite.
    """
    norm = float(torch.stack([part.detach().norm() for part in parts]).cpu().double().norm())
    if not math.isfinite(norm):
        raise FloatingPointError(f"feedback is not finite: {what} holds NaN or infinity")
    return norm


def _output(network: nn.Module, weights: Parameters, image: Tensor) -> Any:
    """The network's output at given weights; running statistics, as of batch norm, stay as they are.

    nnU-Net's networks register modules under several names (the decoder holds the encoder). With its default, torch's
    `functional_call` would exchange such a module's weights once a name and put the wrong ones back.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with composed_attention():
        return functional_call(network, {**buffers, **weights}, (image,), tie_weights=False)


def _gradient(value: Tensor, phi: Sequence[Tensor]) -> list[Tensor]:
    if not value.requires_grad:
        raise RuntimeError("feedback is detached: the synthetic loss does not depend on what feedback moves")
    parts = torch.autograd.grad(value, list(phi), allow_unused=True)
    if all(part is None for part in parts):
        raise RuntimeError("feedback is detached: the synthetic loss does not depend on what feedback moves")
    return [torch.zeros_like(own) if part is None else part for own, part in zip(phi, parts, strict=True)]
