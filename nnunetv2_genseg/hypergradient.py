"""How the loss on held-out cases depends on the generator, through one step of the segmentation network: pure functions.

With θ the segmentation network's weights, φ the generator's parameters and v = ∇_θ L_fb(θ) the gradient of the loss on held-out
cases, a step of size η on the synthetic loss L_syn(θ, φ) gives

    dL_fb/dφ = −η · ∂/∂φ ⟨∇_θ L_syn(θ, φ), v⟩

(Liu, Simonyan and Yang, DARTS, ICLR 2019, equations 6 to 8, without the term of the direct dependence, which is zero
here). Nothing in this file changes a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Parameters = Mapping[str, Tensor]
Logits = Tensor | list[Tensor]
"""One tensor (B, classes, *spatial), or a list of them with deep supervision."""
LossOfLogits = Callable[[Logits], Tensor]

RATIO = 1e-3
"""Half the length of the difference, relative to the norm of the weights; chosen by benchmarks/feedback.py."""
DETACHED = "feedback is detached: the synthetic images do not depend on what feedback moves"


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


def hypergradient(
    network: nn.Module,
    theta: Parameters,
    direction: Parameters,
    phi: Sequence[Tensor],
    image: Tensor,
    loss: LossOfLogits,
    step_size: float,
    ratio: float = RATIO,
) -> list[Tensor]:
    """dL_fb/dφ by a central difference in θ, of gradients by the image that are then taken back to φ.

    With x the image, 2ε ∂/∂φ ⟨∇_θ L_syn, v⟩ ≈ ∂x/∂φ · (∇_x L_syn(θ + εv) − ∇_x L_syn(θ − εv)); DARTS has the same difference
    in its equation 8. No second derivative is taken. That of a network with LeakyReLU would hold nothing of what the kinks
    contribute.

    Args:
        network: the segmentation network, not compiled.
        theta: its weights by name; those without an entry in `direction` are constants.
        direction: v by name.
        phi: what to differentiate by; `image` was computed from it.
        image: (B, C, *spatial) synthetic images, with graph.
        loss: of the logits; it does not depend on φ.
        step_size: η.
        ratio: ε‖v‖ relative to the norm of the weights that v names. Where it is too small the kinks make noise of the
            difference, where it is too large the curvature makes something else of it.

    Returns:
        dL_fb/dφ, one tensor for each of `phi`; zeros if v is zero.

    Raises:
        RuntimeError: nothing of `phi` is reached.
    """
    if not image.requires_grad:
        raise RuntimeError(DETACHED)
    length = _norm(direction.values())
    distance = ratio * _norm(theta[name] for name in direction) / length.clamp(min=torch.finfo(length.dtype).tiny)
    with torch.random.fork_rng([image.device] if image.is_cuda else []):  # dropout drops the same twice
        ahead = _image_gradient(network, theta, direction, distance, image, loss)
    behind = _image_gradient(network, theta, direction, -distance, image, loss)
    parts = torch.autograd.grad(image, list(phi), step_size * (behind - ahead) / (2 * distance), allow_unused=True)
    if all(part is None for part in parts):
        raise RuntimeError(DETACHED)
    return [torch.zeros_like(own) if part is None else part for own, part in zip(phi, parts, strict=True)]


def alignment(network: nn.Module, theta: Parameters, direction: Parameters, image: Tensor, loss: LossOfLogits) -> Tensor:
    """⟨∇_θ L_syn, v⟩: by how much a step on synthetic pairs lowers the held-out loss, divided by η.

    Args: as in `hypergradient`.
    """
    moving = {name: weight.detach().requires_grad_(name in direction) for name, weight in theta.items()}
    slopes = segmenter_gradient(network, moving, image, loss)
    return torch.stack([(slopes[name] * part).sum() for name, part in direction.items()]).sum()


def finite_norm(parts: Sequence[Tensor]) -> float:
    """The norm of a vector.

    Raises:
        FloatingPointError: it is not finite.
    """
    norm = float(torch.stack([part.detach().norm() for part in parts]).cpu().double().norm())
    if not math.isfinite(norm):
        raise FloatingPointError("feedback is not finite: the hypergradient holds NaN or infinity")
    return norm


def _output(network: nn.Module, weights: Parameters, image: Tensor) -> Any:
    """The network's output at given weights; running statistics, as of batch norm, stay as they are.

    nnU-Net's networks register modules under several names (the decoder holds the encoder). With its default, torch's
    `functional_call` would exchange such a module's weights once a name and put the wrong ones back.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return functional_call(network, {**buffers, **weights}, (image,), tie_weights=False)


def _image_gradient(
    network: nn.Module, theta: Parameters, direction: Parameters, distance: Tensor, image: Tensor, loss: LossOfLogits
) -> Tensor:
    """∇_x of the loss with the weights a distance away along the direction, in units of its length."""
    moved = {name: weight.detach() for name, weight in theta.items()}
    moved |= {name: moved[name] + distance * part for name, part in direction.items()}
    leaf = image.detach().requires_grad_()
    gradient: Tensor = torch.autograd.grad(loss(_output(network, moved, leaf)), leaf)[0]
    return gradient


def _norm(parts: Iterable[Tensor]) -> Tensor:
    norm: Tensor = torch.stack([part.detach().norm() for part in parts]).norm()
    return norm
