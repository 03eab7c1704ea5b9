"""How large a picture or a clip is asked for; knows no model and no tokenizer."""

from __future__ import annotations

from typing import Any, NamedTuple


class Size(NamedTuple):
    """What is asked for, in pixels and, for ordered codes, in tokens.

    Attributes:
        height: in pixels.
        width: in pixels.
        frames: of a clip; None is a picture.
        length: tokens of an ordered code to draw; None where the code has no order.
    """

    height: int
    width: int
    frames: int | None = None
    length: int | None = None

    @property
    def pixels(self) -> tuple[int, ...]:
        """(H, W), or (T, H, W) of a clip."""
        return (self.height, self.width) if self.frames is None else (self.frames, *self[:2])

    @property
    def named(self) -> dict[str, Any]:
        """By name, what is not None."""
        return {name: side for name, side in self._asdict().items() if side is not None}

    def __str__(self) -> str:
        clip = "" if self.frames is None else f"{self.frames} frames of "
        code = "" if self.length is None else f" in {self.length} tokens"
        return f"{clip}{self.height}x{self.width}{code}"
