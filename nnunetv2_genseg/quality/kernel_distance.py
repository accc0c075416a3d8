"""Kernel distance (KID): how far the distribution of synthetic images is from that of real ones."""

from __future__ import annotations

from torch import Tensor

DEGREE = 3


def squared_discrepancy(one: Tensor, other: Tensor) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy with the kernel (⟨x, y⟩ / channels + 1)³.

    Kernel and estimator are those of Bińkowski et al., ICLR 2018 (arXiv 1801.01401).

    Args:
        one: (n, channels) features, n at least 2.
        other: (m, channels), m at least 2.
    """
    return float(_within(one) + _within(other) - 2 * _kernel(one, other).mean())


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    """(n, m)."""
    return (one @ other.T / one.shape[1] + 1) ** DEGREE


def _within(features: Tensor) -> Tensor:
    """Mean kernel of two different rows."""
    kernel, count = _kernel(features, features), len(features)
    return (kernel.sum() - kernel.trace()) / (count * (count - 1))
