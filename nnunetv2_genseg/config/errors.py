"""The errors that a user can correct."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class GenSegError(ValueError):
    """Something that a user can correct; the message says what was found, what is allowed and what to do.

    `genseg` prints it as one message. Every other error keeps its traceback.
    """


class GenSegFileError(GenSegError, OSError):
    """A file or folder that cannot be read or written."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of an OSError where a disk, or what a user may have of it, is full."""
OF_WRITING = ("inline_container", "PytorchStreamWriter", "iostream", "creating the NDArray", "ImageFileWriter")
"""What the RuntimeErrors of torch, blosc2 and SimpleITK about a file that they cannot write contain."""


def of_writing(error: BaseException) -> bool:
    """Whether an error is a library's about a file that it cannot write, without the operating system's reason."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OF_WRITING)


@contextmanager
def full_disks_told() -> Iterator[None]:
    """Inside the block, what nnU-Net and the libraries raise where a disk is full becomes a message.

    Raises:
        GenSegFileError: a file could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in FULL
        if isinstance(error, GenSegError) or not (full or of_writing(error)):
            raise
        raise GenSegFileError(
            f"a file could not be written, most likely because a disk is full: {error}. Free space and start the same command "
            "again, a training with --c"
        ) from error


ONE_MACHINE = (
    "nnU-Net trains on the GPUs of one machine, since it takes the number of a process among all processes for that of its GPU. "
    "Run several trainings at once instead: genseg sweep"
)
"""Why a training does not use several machines."""
