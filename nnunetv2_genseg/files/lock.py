"""One process at a time writes into a folder."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from nnunetv2_genseg.config import GenSegError, GenSegFileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE_NAME = "genseg.lock"
_held: set[Path] = set()
"""Folders in which this process is."""


@contextmanager
def alone_in(folder: Path, wait: bool = False) -> Iterator[None]:
    """Inside the block no other process can enter such a block for the same folder.

    The lock is the operating system's (POSIX record lock). It ends with the process, also after SIGKILL, and processes that
    this one starts do not inherit it. On Windows, and on a file system without such locks, nothing is locked.

    Args:
        folder: an existing folder.
        wait: whether to wait for the end of another process that is there.

    Raises:
        GenSegError: without `wait`, another process, or a block of this one, is there.
        GenSegFileError: the folder cannot be written.
    """
    folder = folder.resolve()
    if folder in _held:
        raise GenSegError(f"{folder} is in use by this very process; end what runs there first, or choose another folder")
    path = folder / FILE_NAME
    file = _locked(path, wait)
    _held.add(folder)
    try:
        with suppress(OSError):  # a disk that is full
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
            file.flush()
        yield
    finally:
        _held.discard(folder)
        with suppress(OSError):  # what ended the block is what is to be told
            path.unlink()
        with suppress(OSError):
            file.close()


def _locked(path: Path, wait: bool) -> IO[str]:
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise GenSegFileError(f"{path} cannot be written ({error}); correct the permissions of the folder") from error
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return file  # this file system has no locks
            file.seek(0)
            owner = file.read().strip() or "another process"
            if not wait:
                file.close()
                raise GenSegError(
                    f"{path.parent} is in use by {owner}; wait for its end, end it, or choose another folder (for a training: "
                    "another fold, trainer or nnUNet_results)"
                ) from None
            print(f"{path.parent} is in use by {owner}; waiting for its end", flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # whoever was here has removed it in between
