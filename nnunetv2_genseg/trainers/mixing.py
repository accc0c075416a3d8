"""nnU-Net's loss over a batch whose last patches are synthetic: loss = real + γ · synthetic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_genseg.policy import patches, weighed_loss

Target = Tensor | list[Tensor]


class MixedLoss(nn.Module):
    """Wraps nnU-Net's loss, so that nnU-Net's own training step serves mixed batches unchanged.

    Outside of `mixing` it is the wrapped loss. A synthetic loss that is NaN or infinite is left out; where the network's output
    itself is not finite, as after an overflow in float16, the gradient is not either, and nnU-Net's GradScaler skips the step.

    Args:
        loss: nnU-Net's, with deep supervision's wrapper where there is one.
        on_any_process: whether a flag is set on any process of a distributed training.
    """

    def __init__(self, loss: nn.Module, on_any_process: Callable[[bool], bool] = bool) -> None:
        super().__init__()
        self.loss = loss
        self.on_any_process = on_any_process
        self._real_patches = 0
        self._gamma = 0.0
        self._worth: Tensor | None = None
        self.real = self.synthetic = torch.zeros(())
        """Detached parts of the last mixed loss."""
        self.left_out = False
        """Whether the synthetic part of the last mixed loss was not finite, on any process."""

    @contextlib.contextmanager
    def mixing(self, real_patches: int, gamma: float, worth: Tensor | None = None) -> Iterator[None]:
        """Inside the block the patches of a batch from `real_patches` on are synthetic.

        Args:
            real_patches: B.
            gamma: weight of the synthetic loss.
            worth: (S,) what each synthetic patch weighs in it; None if all weigh the same.
        """
        self._real_patches, self._gamma, self._worth = real_patches, gamma, worth
        try:
            yield
        finally:
            self._real_patches, self._gamma, self._worth = 0, 0.0, None

    def forward(self, output: Any, target: Any) -> Tensor:
        """(B + S, classes, *spatial) logits and their targets, or lists of them, to a scalar."""
        if not self._real_patches:
            loss: Tensor = self.loss(output, target)
            return loss
        n = self._real_patches
        real = self.loss(patches(output, slice(n)), patches(target, slice(n)))
        drawn = patches(output, slice(n, None)), patches(target, slice(n, None))
        synthetic = self.loss(*drawn) if self._worth is None else weighed_loss(self.loss, *drawn, self._worth)
        self.real, self.synthetic = real.detach(), synthetic.detach()
        self.left_out = self.on_any_process(not bool(torch.isfinite(synthetic)))
        mixed: Tensor = real if self.left_out else real + self._gamma * synthetic
        return mixed


def joined(first: Target, second: Target) -> Target:
    """Concatenates two targets along the batch."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    return [torch.cat(pair) for pair in zip(first, second, strict=True)]
