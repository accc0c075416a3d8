"""What a person sees of a training: a progress bar, a line an epoch in the log, and two pictures in the fold folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.plots.progress import SHARE, ProgressRecord
from nnunetv2_genseg.plots.samples import save_samples
from nnunetv2_genseg.trainers.progress_bar import ProgressBar

SAMPLES_FILE = "genseg_samples.png"
"""Real patches and the pairs that are made from them at this moment of the training."""
PROGRESS_FILE = "genseg_progress.png"
"""Curves of the logged values over the epochs."""
PICTURE_TIME = 0.005
"""Most of the training's time that is spent on pictures, as a fraction; the first and the last epoch always have them."""
ROWS = 4
"""Pairs in the sample picture."""


class Recorder:
    """Shows and records a training.

    Args:
        log: writes a line into nnU-Net's log.
        shown: whether this process shows a bar and writes pictures.
        loggers: those of nnU-Net's loggers that take any value, such as wandb's. Its own curves hold a fixed list of values.
    """

    def __init__(self, log: Callable[..., None], shown: bool, loggers: Sequence[Any] = ()) -> None:
        self.log = log
        self.shown = shown
        self.loggers = loggers
        self.progress = ProgressRecord()
        self._bar: ProgressBar | None = None
        self._told: set[str] = set()
        self._due = 0.0
        """When the pictures are to be made again, on the monotonic clock in seconds."""

    def begin_epoch(self, epoch: int, iterations: int) -> None:
        """Shows a bar of an epoch's iterations."""
        if self.shown:
            self._bar = ProgressBar(iterations, f"epoch {epoch}")

    def step(self) -> None:
        """An iteration is over."""
        if self._bar is not None:
            self._bar.step()

    def message(self, text: str, epoch: int, iteration: int) -> None:
        """Logs what happened in an iteration; nothing if `text` is empty."""
        if text:
            self.log(f"GenSeg: epoch {epoch}, iteration {iteration}: {text}")

    def end_epoch(self, epoch: int, share: float, values: dict[str, float]) -> None:
        """Records the means of an epoch and logs them."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self.progress.add(epoch, share, values)
        for logger in self.loggers if self.shown else ():
            for name, value in ({SHARE: share} | values).items():
                self.by_product(type(logger).__name__, logger.log)(f"genseg/{name}", value, epoch)
        if values:
            self.log("GenSeg", ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def refresh(
        self, folder: Path, epoch: int, epochs: int, patches: Callable[[], tuple[Tensor, Tensor]], loop: BilevelLoop
    ) -> None:
        """Writes both pictures, if they are due; see `by_product`.

        Args:
            folder: the fold folder.
            epoch: the present one.
            epochs: of the whole training.
            patches: gives real images (B, C, *spatial) and class maps (B, *spatial).
            loop: draws the pairs; its random state stays as it is.
        """
        started = time.monotonic()
        if not self.shown or (started < self._due and epoch < epochs - 1):
            return

        def samples() -> None:
            draw_samples(folder / SAMPLES_FILE, f"epoch {epoch}", *patches(), loop)

        self.by_product(PROGRESS_FILE, self.progress.plot)(folder / PROGRESS_FILE, epochs)
        self.by_product(SAMPLES_FILE, samples)()
        ended = time.monotonic()
        self._due = ended + (ended - started) / PICTURE_TIME

    def by_product(self, what: str, make: Callable[..., object]) -> Callable[..., None]:
        """A function that does as `make` does, but whose errors do not end the training: the first one is logged."""

        def attempt(*arguments: Any) -> None:
            try:
                make(*arguments)
            except Exception as error:
                if what not in self._told:
                    self.log(f"GenSeg: {what} cannot be made ({type(error).__name__}: {error}); this is not told again")
                self._told.add(what)

        return attempt


def draw_samples(path: Path, title: str, image: Tensor, labels: Tensor, loop: BilevelLoop) -> None:
    """Writes a picture of pairs made from real patches, (B, C, *spatial) and (B, *spatial); see `Recorder.refresh`."""
    image, labels = image[:ROWS], labels[:ROWS]
    pairs = loop.preview(image, labels)
    save_samples(path, image, labels, pairs.image, pairs.labels, loop.codec.foreground, title)
