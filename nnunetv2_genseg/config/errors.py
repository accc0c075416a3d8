"""The errors that a user can correct."""


class GenSegError(ValueError):
    """Something that a user can correct; the message says what was found, what is allowed and what to do.

    `genseg` prints it as one message. Every other error keeps its traceback.
    """


class GenSegFileError(GenSegError, OSError):
    """A file or folder that cannot be read or written."""


ONE_MACHINE = (
    "nnU-Net trains on the GPUs of one machine, since it takes the number of a process among all processes for that of its GPU. "
    "Run several trainings at once instead: genseg sweep"
)
"""Why a training does not use several machines."""
