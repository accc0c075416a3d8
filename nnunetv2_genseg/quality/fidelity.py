"""Mask fidelity: whether a trained segmentation network finds in a synthetic image the mask that it was drawn from."""

from __future__ import annotations

import statistics

from torch import Tensor

from nnunetv2_genseg.quality.base import MEASURES, Samples, in_batches


@MEASURES.register("fidelity")
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
