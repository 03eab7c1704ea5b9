"""Errors that are a user's to mend, and the sentence that tells them; knows nobody who raises."""

USER_ERRORS = (ValueError, OSError, ImportError)


def sentence(error: BaseException) -> str:
    """What went wrong on one line, without Python's errno notation."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
