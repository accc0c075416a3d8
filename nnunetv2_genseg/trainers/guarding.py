"""What holds for a training whatever it trains: alone in its folder, its fault in its log, nothing half-done left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.errors import full_disks_told
from nnunetv2_genseg.files.lock import alone_in
from nnunetv2_genseg.trainers.exporting import exported_whole


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM ends this process and those that it started, as an error does, with exit status 143.

    Python's default ends this process alone: what loads data would stay. A handler of somebody else is left as it is.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    owner = os.getpid()

    def end(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a forked process has the handler too, and nobody reads what it would flush
            os._exit(128 + number)
        for child in active_children():
            if not child.daemon:  # Python ends the others by itself, after what uses them has let them finish
                child.terminate()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_training() -> None:
    """In a process that a training has just forked: the kernel ends it with the training, also after SIGKILL."""
    if os.getppid() == _training:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


_training: int | None = None
"""This process, while it trains."""
PR_SET_PDEATHSIG = 1
"""See prctl(2)."""
if sys.platform == "linux":
    _prctl = ctypes.CDLL(None).prctl
    os.register_at_fork(after_in_child=_end_with_training)


class GuardedTraining(nnUNetTrainer):
    """A trainer of nnU-Net that no other process, lost terminal or SIGTERM leaves in a bad state."""

    _prints = True
    """Whether there is still a terminal to print to."""
    _guarded = False
    """Whether this process is in its fold folder already."""

    def run_training(self) -> None:
        """nnU-Net's. What ends it is also in the log of the fold folder.

        Raises:
            GenSegError: another process trains or validates in this fold folder.
        """
        with self._guard():
            try:
                super().run_training()
            finally:
                self._finish_loaders()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's. What it leaves for others is there if it came to its end, and only then.

        Raises:
            GenSegError: another process trains or validates in this fold folder.
        """
        with self._guard(), exported_whole(self):
            super().perform_actual_validation(save_probabilities)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Inside the block no other process can be in a block for this fold folder, and faults and SIGTERM end as they should."""
        global _training
        if self._guarded:  # a trainer that validates while it trains
            yield
            return
        self._guarded, before, _training = True, _training, os.getpid()
        alone = alone_in(Path(self.output_folder)) if self.local_rank == 0 else nullcontext()
        try:
            with alone, ending_on_sigterm(), self._end_logged(), full_disks_told():
                yield
        finally:
            self._guarded, _training = False, before

    @contextmanager
    def _end_logged(self) -> Iterator[None]:
        """What ends the block is in the log of the fold folder, too."""
        try:
            yield
        except GenSegError as error:
            self.print_to_log_file(f"GenSeg: {error}", also_print_to_console=False)
            if error.__cause__ is not None:
                self.print_to_log_file("".join(traceback.format_exception(error.__cause__)), also_print_to_console=False)
            raise
        except (KeyboardInterrupt, SystemExit):
            self.print_to_log_file("GenSeg: ended by a signal; the same command with --c goes on")
            raise
        except Exception:
            self.print_to_log_file(traceback.format_exc(), also_print_to_console=False)
            raise

    def _finish_loaders(self) -> None:
        """Ends the processes that load and augment."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if isinstance(loader, NonDetMultiThreadedAugmenter):
                loader._finish()

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """nnU-Net's. A terminal that is closed or gone does not end the training."""
        try:
            shown = also_print_to_console and self._prints
            super().print_to_log_file(*args, also_print_to_console=shown, add_timestamp=add_timestamp)
        except (OSError, ValueError) as error:
            self._prints = False
            with suppress(OSError, ValueError):
                text = f"GenSeg: nothing more is printed, because printing failed: {error}"
                super().print_to_log_file(text, also_print_to_console=False)
