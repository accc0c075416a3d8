"""The errors that a user can correct."""


class GenSegError(ValueError):
    """Something that a user can correct; the message says what was found, what is allowed and what to do.

    `genseg` prints it as one message. Every other error keeps its traceback.
    """


class GenSegFileError(GenSegError, OSError):
    """A file or folder that cannot be read or written."""
