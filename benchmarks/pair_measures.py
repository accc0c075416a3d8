"""Figures of merit of synthetic pairs, by which generator families are compared."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunetv2_genseg.quality.feature_figures import spread
from nnunetv2_genseg.quality.features import SMALLEST_DEVIATION, encoder_features, in_batches
from nnunetv2_genseg.quality.kernel_distance import squared_discrepancy

HALF_NYQUIST = 0.25
"""Cycles per voxel."""


@dataclass(frozen=True)
class Samples:
    """Synthetic pairs, the real patches that they were made from, and a segmentation network that judges them."""

    real: Tensor
    """(N, C, *spatial) real images."""
    synthetic: Tensor
    """(N, C, *spatial) synthetic images, each made from the real one at its place."""
    synthetic_labels: Tensor
    """(N, *spatial) int64 their class maps."""
    reference: Tensor
    """(M, C, *spatial) real images of the whole population, which the distribution of the synthetic ones is compared with."""
    segmenter: nn.Module
    """A trained network of nnU-Net's kind in evaluation mode: (B, C, *spatial) images to (B, classes, *spatial) logits, with its
    stages' features from `segmenter.encoder`."""
    foreground: int
    """Number of foreground classes; the class maps number them from 1."""
    batch_size: int
    """Patches that the network is given at once."""


def diversity(samples: Samples) -> float:
    """Mean distance of two synthetic images over that of the real ones they were made from.

    0: all synthetic images are the same. 1: they differ as much as the real patches. Above 1: they add variation. The distance is
    Euclidean, of the segmentation network's features, standardised by the reference.
    """
    real, synthetic, reference = (
        encoder_features(samples.segmenter, images, samples.batch_size)
        for images in (samples.real, samples.synthetic, samples.reference)
    )
    return spread(standardised(synthetic, reference)) / spread(standardised(real, reference))


def fidelity(samples: Samples) -> float:
    """Dice of the network's segmentation of the synthetic images against their masks, in [0, 1]; 1 is best."""

    def segmented(images: Tensor) -> Tensor:
        logits: Tensor = samples.segmenter(images)
        return logits.argmax(dim=1)

    found = in_batches(segmented, samples.synthetic, samples.batch_size)
    return dice(found, samples.synthetic_labels, samples.foreground)


def dice(found: Tensor, labels: Tensor, foreground: int) -> float:
    """Dice of two class maps, every class over all patches together, and the mean over the classes.

    Args:
        found: (B, *spatial) integers.
        labels: (B, *spatial) integers.
        foreground: number of classes from 1 on; one that is in neither map is left out.

    Returns:
        In [0, 1]; NaN if no class is in a map.
    """
    values = []
    for label in range(1, foreground + 1):
        mine, other = found == label, labels == label
        voxels = int(mine.sum()) + int(other.sum())
        if voxels:
            values.append(2 * int((mine & other).sum()) / voxels)
    return statistics.fmean(values) if values else float("nan")


def kernel_distance(samples: Samples) -> float:
    """KID of the synthetic images and the reference; about 0 is best, and an estimate may be below.

    Kernel and estimator are those of Bińkowski et al., ICLR 2018 (arXiv 1801.01401). The features are those of the segmentation
    network, standardised by the reference, instead of an Inception network's.
    """
    reference, synthetic = (
        encoder_features(samples.segmenter, images, samples.batch_size) for images in (samples.reference, samples.synthetic)
    )
    return squared_discrepancy(standardised(synthetic, reference), standardised(reference, reference))


def sharpness(samples: Samples) -> float:
    """Energy of the synthetic images above half of the Nyquist frequency over that of the real ones, mean over the channels.

    1: equally sharp. Below 1: blurred. NaN if every channel of the real images is constant.
    """
    return float(high_frequency_ratio(samples.real, samples.synthetic).nanmean())


MEASURES = {"diversity": diversity, "fidelity": fidelity, "kernel_distance": kernel_distance, "sharpness": sharpness}
"""By the names in the results."""


def standardised(features: Tensor, reference: Tensor) -> Tensor:
    """(n, channels) features less the mean of the reference, (m, channels), over its standard deviation."""
    deviation = reference.std(dim=0, correction=0) + SMALLEST_DEVIATION
    return (features - reference.mean(dim=0)) / deviation


def high_frequency_ratio(real: Tensor, synthetic: Tensor) -> Tensor:
    """Energy above half of the Nyquist frequency in synthetic images, over that in the real ones.

    Energies are averaged over the patches of a channel before they are divided. A frequency counts if its radius (root of the sum
    of squares over the axes) is above 0.25 cycles per voxel: so a rotation alone changes nothing. A change of size does move
    energy across that bound; over random factors that are log-uniform about 1 the two directions nearly cancel. The mean of a
    patch is subtracted and a Hann window applied along every axis, so that the jump from a border to the opposite one is no
    high frequency.

    Args:
        real: (B, C, *spatial), 2D or 3D.
        synthetic: (B', C, *spatial), made from these images or from others like them.

    Returns:
        (C,) 1 for equally sharp images, below 1 for blurred ones, above for noisier or sharpened ones; NaN for a channel that is
        constant in all real patches.

    Examples:
        >>> sharp = torch.randn(4, 1, 32, 32)
        >>> blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
        >>> bool(high_frequency_ratio(sharp, blurred) < 0.3)
        True
    """
    return _high_frequency_energy(synthetic) / _high_frequency_energy(real)


def _high_frequency_energy(images: Tensor) -> Tensor:
    """(C,) mean over the patches of (B, C, *spatial)."""
    spatial = images.shape[2:]
    axes = tuple(range(2, images.ndim))
    window, radius = torch.ones((), device=images.device), torch.zeros((), device=images.device)
    for extent in spatial:
        position = (torch.arange(extent, device=images.device) + 0.5) / extent
        window = window[..., None] * (math.pi * position).sin().square()
        radius = radius[..., None] + torch.fft.fftfreq(extent, device=images.device).square()
    mean = (images * window).sum(dim=axes, keepdim=True) / window.sum()
    power = torch.fft.fftn((images - mean) * window, dim=axes).abs().square()
    energy: Tensor = (power * (radius > HALF_NYQUIST**2)).sum(dim=axes).mean(dim=0)
    return energy
