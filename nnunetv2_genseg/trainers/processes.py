"""Work on many cases in as many processes as nnU-Net preprocesses with."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from nnunetv2.configuration import default_num_processes

from nnunetv2_genseg.config import GenSegError


def by_processes(work: Callable[[str], None], names: Collection[str], done: Callable[[str], None]) -> None:
    """Does work for every name, in as many processes as nnU-Net preprocesses with, and what follows it in this one.

    Raises:
        GenSegError: a process was killed, or its work failed in a way that a user can correct.
    """
    processes = min(default_num_processes, len(names))
    if processes <= 1:
        for name in names:
            work(name)
            done(name)
        return
    executor = ProcessPoolExecutor(processes, get_context("spawn"))
    try:
        running = {executor.submit(work, name): name for name in names}
        for ended in as_completed(running):
            ended.result()
            done(running[ended])
    except BrokenProcessPool as error:
        raise GenSegError(
            "a process that preprocessed images was killed, often since the memory was full; start again with fewer of them at "
            f"once, as in nnUNet_def_n_proc=1 (now {processes}); what is preprocessed is kept"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
