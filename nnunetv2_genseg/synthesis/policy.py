"""The drawing policy as parameters that feedback can move: how far, how wide, and what each class is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

FACTORS = ("deformation factor", "style factor", "smallest worth", "largest worth")
"""Names of what the feedback may choose."""


class Policy(nn.Module):
    """Factors on the configured values; all 1 at the start, and for ever unless `feedback.parameters` is `policy`.

    Args:
        foreground: number of foreground classes.
    """

    def __init__(self, foreground: int) -> None:
        super().__init__()
        self.log_deformation = nn.Parameter(torch.zeros(()))
        self.log_style = nn.Parameter(torch.zeros(()))
        self.log_worth = nn.Parameter(torch.zeros(foreground))

    LIMIT = 3.0
    """No factor leaves [1 / LIMIT, LIMIT], smoothly."""

    def _factor(self, logarithm: Tensor) -> Tensor:
        bound = torch.log(torch.tensor(self.LIMIT, device=logarithm.device))
        return (bound * (logarithm / bound).tanh()).exp()

    @property
    def deformation(self) -> Tensor:
        """Factor on the elastic displacement, and on the spread of learned shapes; without graph, since labels are integers."""
        return self._factor(self.log_deformation.detach())

    @contextmanager
    def deforming(self, further: float) -> Iterator[None]:
        """Inside the block `log_deformation` is larger by `further`."""
        own = self.log_deformation.detach().clone()
        with torch.no_grad():
            self.log_deformation.add_(further)
        try:
            yield
        finally:
            with torch.no_grad():
                self.log_deformation.copy_(own)

    @property
    def style(self) -> Tensor:
        """Factor on the style noise, the shift of class intensities and the tone curve."""
        return self._factor(self.log_style)

    @torch.no_grad()
    def factors(self) -> dict[str, float]:
        """The factors by name; of the classes' worths the smallest and the largest."""
        values = self.deformation, self.style, *self._factor(self.log_worth).aminmax()
        return {name: float(value) for name, value in zip(FACTORS, values, strict=True)}

    def worth(self, sizes: Tensor) -> Tensor:
        """What each pair weighs in the synthetic loss, beside the others of its batch.

        What all pairs weigh is `mixing.gamma`, which is the user's: one step ahead a longer step nearly always looks better, so
        that the feedback would raise it to its bound.

        Args:
            sizes: (B, foreground) voxels of every foreground class in each mask.

        Returns:
            (B,) of mean 1, in proportion to the geometric mean factor of the classes that a mask shows; that is 1 without any.
        """
        present = (sizes > 0).float()
        factors = self._factor((present @ self.log_worth) / present.sum(dim=1).clamp(min=1))
        alike = (present == present[0]).all()  # then the gradient is zero to the bit: Adam makes whole steps of rounding errors
        return torch.where(alike, torch.ones_like(factors), factors / factors.mean())


def weighed_loss(loss: Callable[[Any, Any], Tensor], output: Any, target: Any, worth: Tensor) -> Tensor:
    """The mean of the losses of single patches, each times its worth.

    Args:
        loss: of logits and targets.
        output: (B, classes, *spatial) logits, or a list of them, one a level of deep supervision.
        target: targets for them, likewise.
        worth: (B,) what each patch weighs.
    """
    single = [loss(patches(output, slice(i, i + 1)), patches(target, slice(i, i + 1))) for i in range(len(worth))]
    return (worth * torch.stack(single)).mean()


def patches(values: Any, chosen: slice) -> Any:
    """Some patches of a tensor, or of every tensor of a list."""
    return values[chosen] if isinstance(values, Tensor) else [part[chosen] for part in values]
