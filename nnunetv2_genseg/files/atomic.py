"""Writes a file at once: whoever reads it finds the former file or the whole new one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from nnunetv2_genseg.config import GenSegFileError
from nnunetv2_genseg.config.errors import of_writing

PARTIAL = ".partial"
"""Ending of a file that is being written."""
_in_progress: set[Path] = set()
"""What this process is writing."""


def write_text_atomically(text: str, path: Path) -> None:
    """Writes text in UTF-8 through `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which replaces `path` when the block ends.

    It has a temporary name beside `path`, is flushed to the disk and then renamed. Its mode follows the umask.

    Raises:
        GenSegFileError: it could not be written (disk full, no permission); what was at `path` before is intact.
    """
    partial = partial_of(path)
    with writing(path, partial):
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


@contextlib.contextmanager
def writing(path: Path, partial: Path) -> Iterator[None]:
    """Inside the block `partial`, a file or folder, is written, which shall replace `path`; after an error it is removed.

    Raises:
        GenSegFileError: a file could not be written.
    """
    _in_progress.add(partial)
    try:
        yield
    except BaseException as error:
        _remove(partial)
        interruption = _interruption(error)
        if interruption is not None:
            raise interruption from None
        unwritten = isinstance(error, (OSError, SafetensorError)) or of_writing(error)
        if not unwritten or isinstance(error, GenSegFileError):
            raise
        raise GenSegFileError(
            f"could not write {path}: {error}. What was saved there before is intact; free space or correct the "
            "permissions and continue (a training with --c)"
        ) from error
    finally:
        _in_progress.discard(partial)


def _interruption(error: BaseException | None) -> BaseException | None:
    """What ended the process if an error only follows from it: torch's writer fails when SIGTERM interrupts it."""
    while error is not None and isinstance(error, Exception):
        error = error.__cause__ or error.__context__
    return error


def put_in_place(written: Path, target: Path) -> None:
    """Flushes a whole file that a library has written to the disk, and moves it to `target` on the same file system.

    Raises:
        OSError: it could not be flushed or moved.
    """
    with open(written, "rb+") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(written, target)


def partial_of(path: Path) -> Path:
    """Where this process writes a file that shall replace `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")


def remove_partial(folder: Path) -> None:
    """Removes what processes had begun to write that are no longer there. No other one may write into the folder."""
    for path in folder.glob(f"*{PARTIAL}"):
        if path not in _in_progress:
            _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
