"""What a person sees of a training in the fold folder: the progress picture and the sample picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.plots.progress import ProgressRecord
from nnunetv2_genseg.plots.samples import save_samples

SAMPLES_FILE = "genseg_samples.png"
PROGRESS_FILE = "genseg_progress.png"
PICTURES = 12
"""The pictures are refreshed about this often during a training."""
ROWS = 4
"""Pairs in the sample picture."""


def is_due(epoch: int, epochs: int) -> bool:
    """Whether pictures are refreshed after an epoch."""
    return epoch % max(1, epochs // PICTURES) == 0 or epoch == epochs - 1


def refresh(
    folder: Path, epoch: int, epochs: int, progress: ProgressRecord, samples: Callable[[], tuple[Tensor, Tensor]], loop: BilevelLoop
) -> None:
    """Writes both pictures.

    Args:
        folder: the fold folder.
        epoch: the present one.
        epochs: of the whole training.
        progress: what was measured so far.
        samples: gives real images (B, C, *spatial) and class maps (B, *spatial).
        loop: draws the pairs; its random state stays as it is.

    Raises:
        OSError: a picture could not be written.
    """
    progress.plot(folder / PROGRESS_FILE, epochs)
    draw_samples(folder / SAMPLES_FILE, f"epoch {epoch}", *samples(), loop)


def draw_samples(path: Path, title: str, image: Tensor, labels: Tensor, loop: BilevelLoop) -> None:
    """Writes a picture of pairs made from real patches, (B, C, *spatial) and (B, *spatial); see `refresh`."""
    image, labels = image[:ROWS], labels[:ROWS]
    pairs = loop.preview(image, labels)
    save_samples(path, image, labels, pairs, loop.codec.foreground, title)
