"""The sampling policy: factors on the settings that feedback can move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Policy(nn.Module):
    """Factors on the configured values; all 1 unless `feedback.parameters` is `policy`."""

    LIMIT = 3.0
    """No factor leaves [1 / LIMIT, LIMIT], smoothly."""

    def __init__(self) -> None:
        super().__init__()
        self.log_deformation = nn.Parameter(torch.zeros(()))
        self.log_style = nn.Parameter(torch.zeros(()))

    def _factor(self, logarithm: Tensor) -> Tensor:
        bound = math.log(self.LIMIT)
        return (bound * (logarithm / bound).tanh()).exp()

    @property
    def deformation(self) -> Tensor:
        """Factor on the elastic displacement and on how far new shapes differ from the real ones.

        Without graph, since labels are integers.
        """
        return self._factor(self.log_deformation.detach())

    @property
    def style(self) -> Tensor:
        """Factor on the style noise, the shift of class intensities and the tone curve."""
        return self._factor(self.log_style)

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

    @torch.no_grad()
    def factors(self) -> dict[str, Tensor]:
        """The factors by name."""
        return {"deformation_factor": self.deformation, "style_factor": self.style}
