"""What every mode offers, and the registry that finds one by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nnunetv2_genseg.generators import Generator
from nnunetv2_genseg.registry import Registry


@dataclass(frozen=True)
class Redrawing:
    """What a mode makes an image from. Images are relative to their standard deviation."""

    image: Tensor
    """(B, C, *spatial) the real images."""
    grid: Tensor
    """(B, *spatial, dims) sampling positions of the deformation."""
    wanted: Tensor
    """(B, condition channels, *spatial) the condition of the synthetic image."""
    present: Tensor | None
    """(B, condition channels, *spatial) the condition of the real image, deformed; for modes with `cancels`."""
    style: Tensor
    """(B, *style_shape) style noise."""
    generator: Generator


class Mode(Protocol):
    """Makes images."""

    uses_tissues: bool
    """Whether the condition holds tissue classes and intensities."""
    cancels: bool
    """Whether what the generator draws cancels where the condition does not change."""

    def image(self, redrawing: Redrawing) -> Tensor:
        """(B, C, *spatial) synthetic images, relative to the images' standard deviation."""


MODES: Registry[Callable[[], Mode]] = Registry("redraw.mode", __package__ or "")
