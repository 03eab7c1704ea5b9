"""Numbers and lists that a person gives, as Python's own: NumPy's and torch's are taken too.

Booleans are no numbers, and a float is no whole number, not even 5.0. Arrays and tensors are known
by what they can do, so that neither library is imported here. Knows no option.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence, Set
from numbers import Real
from typing import Any

_SHOWN = 80  # characters of a value in an error message
_BITS = 256  # of whole numbers that are written out


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number of Python, from one of Python, of NumPy, or a 0-d array or tensor.

    Args:
        name: of the option, for the message.
        value: as given.
        least: the smallest that is allowed.
        most: the largest; None is no bound.

    Raises:
        ValueError: it is none, or outside the range.
    """
    found = _index(value)
    if found is None or found < least or (most is not None and found > most):
        rule = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {rule}, got {shown(value)}")
    return found


def real(name: str, value: object) -> float:
    """A finite number of Python, from one of Python, of NumPy, or a 0-d array or tensor.

    Args:
        name: of the option, for the message.
        value: as given.

    Raises:
        ValueError: it is no number, or none that is finite.
    """
    scalar = plain(value)
    if not isinstance(scalar, Real) or isinstance(scalar, bool):
        raise ValueError(f"{name} must be a number, got {shown(value)}")
    try:
        found = float(scalar)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number, got {shown(value)}")
    return found


def listed(given: Any) -> Sequence[Any]:
    """What was given as one or as several, as several; ranges stay as they are, never written out.

    Args:
        given: None is nothing; text, a number and what has no order, as a set, is one.
    """
    if given is None:
        return []
    if hasattr(given, "ndim"):
        return given.tolist() if given.ndim else [given.item()]
    if isinstance(given, str | bytes | Set | Mapping) or not isinstance(given, Collection):
        return [given]
    return given if isinstance(given, Sequence) else list(given)


def several(given: Any) -> bool:
    """Whether `listed` takes it for several, even where that is one entry or none."""
    if hasattr(given, "ndim"):
        return bool(given.ndim)
    return isinstance(given, Collection) and not isinstance(given, str | bytes | Set | Mapping)


def plain(value: object) -> object:
    """What a 0-d array, a 0-d tensor or a number of NumPy holds; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value  # type: ignore[attr-defined]


def shown(value: object) -> str:
    """A value in one short line, for an error message."""
    if isinstance(value, int) and value.bit_length() > _BITS:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write long ones
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _index(value: object) -> int | None:
    scalar = plain(value)
    if isinstance(scalar, bool) or hasattr(scalar, "ndim"):
        return None  # a list of one number is not that number
    try:
        return operator.index(scalar)  # type: ignore[arg-type]
    except TypeError:
        return None
