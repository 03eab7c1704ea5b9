"""Errors that are a user's to mend, and the sentence that tells them; knows nobody who raises."""

import os

from visual_ar.plain_text import plain

USER_ERRORS = (ValueError, OSError, ImportError)


def sentence(error: BaseException) -> str:
    """What went wrong on one line that no terminal obeys, without Python's errno notation."""
    if isinstance(error, OSError) and error.strerror:
        name = error.filename  # a number where a file was given as one
        known = isinstance(name, str | bytes | os.PathLike) and name
        return plain(f"{os.fsdecode(name)}: {error.strerror}" if known else error.strerror)
    return plain(" ".join(str(error).split())) or type(error).__name__
