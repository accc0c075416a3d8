"""One flat style vector that holds parts of several shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def flat_length(shapes: Sequence[Sequence[int]]) -> int:
    """Length of a vector that holds parts of these shapes."""
    return sum(math.prod(shape) for shape in shapes)


def split_style(style: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """(B, flat_length(shapes)) to the parts, (B, *shape) each."""
    pieces = torch.split(style, [math.prod(shape) for shape in shapes], dim=1)
    return [piece.view(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
