"""Real patch, real mask, new mask and synthetic patch side by side, as a PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from nnunetv2_genseg.files.atomic import replacing
from nnunetv2_genseg.plots import own_style

COLUMNS = ("real image", "its mask", "new mask", "synthetic image", "synthetic, mask outlined")
Picture = npt.NDArray[np.float64]


@own_style
def save_samples(
    path: Path, image: Tensor, labels: Tensor, new_image: Tensor, new_labels: Tensor, foreground: int, title: str
) -> None:
    """Writes one row for each pair; in 3D the slice of the first axis with most labelled voxels.

    Args:
        path: of the PNG.
        image: (B, C, *spatial) real images.
        labels: (B, *spatial) their class maps.
        new_image: (B, C, *spatial) the synthetic images made from them.
        new_labels: (B, *spatial) the class maps of these.
        foreground: number of foreground classes.
        title: above the picture.
    """
    count = len(image)
    figure = Figure(figsize=(2.6 * len(COLUMNS), 2.7 * count + 0.4))
    FigureCanvasAgg(figure)
    margins = {"left": 0.01, "right": 0.99, "bottom": 0.01, "wspace": 0.04, "hspace": 0.04}
    margins["top"] = 1 - 0.6 / figure.get_figheight()
    axes = figure.subplots(count, len(COLUMNS), squeeze=False, gridspec_kw=margins)
    for row in range(count):
        real, mask = middle_slice(image[row], labels[row])
        drawn, new = middle_slice(new_image[row], new_labels[row])
        window = window_of(real)
        cells = (grey(real, window), coloured(mask, foreground), coloured(new, foreground), grey(drawn, window))
        for axis, picture in zip(axes[row], (*cells, cells[3]), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
        if new.max() > 0 and min(new.shape) > 1:  # around a line of voxels no outline can be drawn
            axes[row][-1].contour(new, levels=np.arange(0.5, foreground + 1), colors="red", linewidths=0.8)
    for axis, name in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, y=1 - 0.1 / figure.get_figheight(), fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=80)


def middle_slice(image: Tensor, labels: Tensor) -> tuple[Picture, npt.NDArray[np.int64]]:
    """(C, *spatial) and (*spatial) to an (H, W, C) picture and its (H, W) mask; in 3D the slice with most labelled voxels."""
    if labels.ndim == 3:
        best = int((labels > 0).flatten(1).sum(dim=1).argmax()) if bool((labels > 0).any()) else len(labels) // 2
        image, labels = image[:, best], labels[best]
    return image.movedim(0, -1).double().cpu().numpy(), labels.cpu().numpy()


def window_of(picture: Picture) -> Picture:
    """(2, C): the intensities of an (H, W, C) picture that are shown as black and as white."""
    window: Picture = np.percentile(picture, [0.5, 99.5], axis=(0, 1))
    return window


def grey(picture: Picture, window: Picture) -> Picture:
    """Shown as RGB if the image has three channels, else its first channel."""
    low, high = window
    scaled = np.clip((picture - low) / np.maximum(high - low, 1e-6), 0, 1)
    return scaled if picture.shape[-1] == 3 else np.repeat(scaled[..., :1], 3, axis=-1)


def coloured(mask: npt.NDArray[np.int64], foreground: int) -> Picture:
    """An (H, W) mask as a picture with a colour for each class; the ignore label, `foreground` + 1, is grey."""
    colours = np.vstack([np.zeros(3), colormaps["tab10"](np.arange(foreground) % 10)[:, :3], np.full(3, 0.5)])
    result: Picture = colours[np.minimum(mask, foreground + 1)]
    return result
