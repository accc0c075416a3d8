"""Slices of an image, and the outlines of its mask, as two encoded pictures that a page lays one over the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nnunetv2_genseg.plots.samples import Picture, grey, window_of

SAMPLE = 1_000_000
"""Voxels of a volume from which its window is measured, at most."""
QUALITY = 80
"""Of WebP, in percent."""
COLOURS: npt.NDArray[np.uint8] = np.array(
    [
        *([0, 229, 255], [255, 145, 0], [255, 64, 255], [118, 255, 3], [255, 234, 0]),
        *([255, 82, 82], [179, 136, 255], [255, 255, 255], [29, 233, 182], [255, 170, 190]),
    ],
    np.uint8,
)
"""(10, 3): outlines of the labels 1, 2, ..., repeated after ten; light, for pages give them a dark edge."""
Array = npt.NDArray[Any]


def legend(labels: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names of the foreground labels and the colours of their outlines, as CSS has them.

    Args:
        labels: of dataset.json; regions of several labels are left out.
    """
    values = {name: np.atleast_1d(value).tolist() for name, value in labels.items()}
    single = {name: int(of[0]) for name, of in values.items() if len(of) == 1 and int(of[0]) > 0}
    return [(name, "rgb({} {} {})".format(*COLOURS[(value - 1) % len(COLOURS)])) for name, value in single.items()]


def window_of_volume(image: Array, colour: bool = False) -> Picture:
    """(2, C): the intensities of a (C, slices, height, width) image that are shown as black and as white.

    Args:
        image: raw intensities.
        colour: whether it is a photograph in colour; then the range of the pixel's type is shown, for colours as they are.
    """
    if colour:
        return np.array([[0.0] * len(image), [255.0 if image.max() <= 255 else 65535.0] * len(image)])
    flat = image.reshape(len(image), -1)
    return window_of(flat[:, :: max(1, flat.shape[1] // SAMPLE)].T[None].astype(np.float64))


def shown_size(shape: Sequence[int], spacing: Sequence[float], longest: int) -> tuple[int, int]:
    """Width and height in pixels at which slices of `shape` (height, width) and `spacing` (mm) are drawn without distortion."""
    height, width = (n * step for n, step in zip(shape, spacing, strict=True))
    scale = longest / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def image_picture(image: Array, window: Picture, size: tuple[int, int]) -> bytes:
    """WebP of slices, one below the other.

    Args:
        image: (C, n, height, width) raw intensities; RGB if it has three channels, else its first channel is shown.
        window: of `window_of_volume`.
        size: width and height of each slice in pixels.
    """
    shown = (grey(np.moveaxis(image, 0, -1).astype(np.float64), window) * 255).round().astype(np.uint8)
    slices = [Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR) for pixels in shown]
    return _encoded(Image.fromarray(np.concatenate([np.asarray(pixels) for pixels in slices])), "WEBP", quality=QUALITY)


def outline_picture(labels: Array, size: tuple[int, int]) -> bytes:
    """PNG of the boundaries of labels in slices, one below the other; transparent elsewhere. Of two labels the higher one has it.

    Args:
        labels: (n, height, width) integers; 0 and below is background.
        size: width and height of each slice in pixels.
    """
    width, height = size
    rows, columns = ((2 * np.arange(n) + 1) * own // (2 * n) for n, own in zip((height, width), labels.shape[1:], strict=True))
    large = np.maximum(labels[:, rows][:, :, columns], 0).astype(np.int64)
    edge = np.zeros(large.shape, bool)
    for axis in (1, 2):
        step = np.diff(large, axis=axis)
        before, after = [(0, 0)] * 3, [(0, 0)] * 3
        before[axis], after[axis] = (1, 0), (0, 1)
        edge |= np.pad(step > 0, before) | np.pad(step < 0, after)
    indices = np.where(edge, (large - 1) % len(COLOURS) + 1, 0).astype(np.uint8)
    picture = Image.fromarray(indices.reshape(-1, width))
    picture.putpalette([0, 0, 0, *COLOURS.flatten().tolist()])
    return _encoded(picture, "PNG", transparency=0, optimize=True)


def _encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    content = BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()
