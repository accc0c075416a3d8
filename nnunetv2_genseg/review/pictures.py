"""A slice as a lossless picture in a window of intensities."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from nnunetv2_genseg.plots.samples import grey
from nnunetv2_genseg.plots.slices import outline_picture, shown_size
from nnunetv2_genseg.trainers.reviewed_pairs import ShownCase

LONGEST = 400
"""Pixels of the longer side of outlines, at least, so that they are thin in small images, too, and seen on a phone."""


def slice_picture(case: ShownCase, k: int, channel: int, low: float, high: float) -> bytes:
    """PNG of slice `k`, a pixel a voxel, of one channel unless the image is in colour; `low` is black, `high` is white."""
    shown = case.image[:, k] if case.colour else case.image[channel : channel + 1, k]
    window = np.array([[low] * len(shown), [high] * len(shown)])
    pixels = (grey(np.moveaxis(shown, 0, -1).astype(np.float64), window) * 255).round().astype(np.uint8)
    content = BytesIO()
    Image.fromarray(pixels if case.colour else pixels[..., 0]).save(content, "PNG", compress_level=1)
    return content.getvalue()


def outlines(case: ShownCase, k: int) -> bytes:
    """PNG of the outlines of the labels in slice `k`, transparent elsewhere."""
    shape = case.labels.shape[1:]
    return outline_picture(case.labels[k : k + 1], shown_size(shape, case.spacing[1:], max(LONGEST, *shape)))
