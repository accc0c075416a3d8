"""Fréchet distance (FID): how far two distributions of features are from each other, if both are taken for normal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunetv2_genseg.config import GenSegError

SUFFICIENT = 2000
"""Samples from which on the distance is hardly too large; below, it grows as there are fewer."""
INSTALL = "FID needs torchmetrics; run: pip install nnunetv2-genseg[quality]"


class _Given(nn.Module):
    """Stands where torchmetrics expects a network: the features are known already."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels

    def forward(self, features: Tensor) -> Tensor:
        return features


def is_available() -> bool:
    """Whether torchmetrics can be imported."""
    try:
        import torchmetrics.image.fid  # noqa: F401
    except ImportError:
        return False
    return True


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """FID of two samples of features, computed by torchmetrics (Heusel et al., NeurIPS 2017, arXiv 1706.08500).

    With fewer samples than channels the distance is computed in the space that the samples span, where it is the same.

    Args:
        one: (n, channels) features, n at least 2.
        other: (m, channels), m at least 2.

    Returns:
        At least 0, up to rounding. Too large for small samples: compare it with that of real samples of the same size.

    Raises:
        GenSegError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise GenSegError(INSTALL) from error
    both = torch.cat([one, other]).double()
    both = both - both.mean(dim=0)
    if len(both) < both.shape[1]:
        both = both @ torch.linalg.qr(both.T).Q
    metric = FrechetInceptionDistance(feature=_Given(both.shape[1])).set_dtype(torch.float64)
    metric.update(both[: len(one)], real=True)
    metric.update(both[len(one) :], real=False)
    return float(metric.compute())
