"""What a visitor set, checked and as arguments of a pipeline's call; knows no page, no decoding."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from visual_ar.pipeline import VisualARPipeline

PICTURES = 4
"""So many pictures a page asks for at first."""
MOST_PICTURES = 16
LONGEST_PROMPT = 1_000
LARGEST_SEED = 2**62


@dataclass(frozen=True)
class Settings:
    """Everything about a drawing but the method.

    Attributes:
        subject: prompt, or name or number of a class.
        pictures: how many, 1 to `MOST_PICTURES`.
        seed: of the first picture, the others follow.
        guidance: guidance scale.
        guidance_schedule: see `guidance_by_rank`.
        temperature: above 0.
        top_k: 0 is off.
        top_p: 1 is off.

    Raises:
        ValueError: the prompt is too long or has control characters, or there are too many
            pictures; what the pipeline checks is left to it.
    """

    subject: str
    pictures: int
    seed: int
    guidance: float
    guidance_schedule: str
    temperature: float
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        if len(self.subject) > LONGEST_PROMPT:
            raise ValueError(
                f"prompt must have at most {LONGEST_PROMPT} characters, got {len(self.subject)}"
            )
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in self.subject):
            raise ValueError(f"prompt must be without control characters, got {self.subject!a}")
        if not 1 <= self.pictures <= MOST_PICTURES:
            raise ValueError(f"pictures must be from 1 to {MOST_PICTURES}, got {self.pictures}")

    def call(self, pipe: VisualARPipeline) -> dict[str, Any]:
        """Arguments for `stream` of a pipeline, or for its call."""
        return {
            **pipe.conditioner.asks(self.subject),
            "num_images_per_prompt": self.pictures,
            "guidance_scale": self.guidance,
            "guidance_schedule": self.guidance_schedule,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seeds": self.seed,
        }


def settings(
    subject: str | None,
    pictures: float | None,
    seed: str | int | None,
    guidance: float | None,
    guidance_schedule: str | None,
    temperature: float | None,
    top_k: float | None,
    top_p: float | None,
) -> Settings:
    """Settings from what the controls of a page hold.

    Raises:
        ValueError: a control is empty, or a number is outside its range.
    """
    numbers = {
        "pictures": pictures,
        "guidance": guidance,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    for name, value in numbers.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
    given: dict[str, Any] = {
        **numbers,
        "pictures": _whole("pictures", pictures),
        "top_k": _whole("top_k", top_k),
    }
    schedule = guidance_schedule or "constant"
    text = (subject or "").strip()
    return Settings(subject=text, seed=parse_seed(seed), guidance_schedule=schedule, **given)


def parse_seed(seed: str | int | None) -> int:
    """The number that a seed's control holds; text, because seeds are longer than a browser's 2^53.

    Raises:
        ValueError: it is no whole number from 0 to `LARGEST_SEED`.
    """
    text = str(seed).strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST_SEED):
        raise ValueError(f"seed must be a whole number from 0 to 2^62, got {text[:40]!a}")
    return int(text)


def _whole(name: str, value: Any) -> int:
    if not float(value).is_integer():
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)
