"""The wire format of OpenAI's images API: bodies to orders, pictures and errors to JSON and events.

Fields and shapes follow the reference of `POST /v1/images/generations`, where a field that asks for
what is delivered anyway is taken and any other is refused by name; sampling options, the seed,
and the frames and the length of what is drawn are fields of our own. Knows nothing about web
frameworks, pipelines or engines.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LARGEST_SEED = 2**53 - 1
"""Whole numbers up to it survive every JSON reader."""
LARGEST_PREVIEWS = 3
SAMPLING = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p")
"""Fields that are options of a pipeline's call, under the same names."""
SIDES = {"height": "size", "width": "size", "frames": "frames", "length": "length"}
"""What a pipeline's call asks a size by -> the field that says it."""
AUTO = "auto"
_LAYOUT = "\t\n\r"
"""Control characters that a prompt may hold: people write it in lines."""
_UNCOMPRESSED = 100  # per cent, what output_compression says of a format that loses nothing
_SHOWN = 80  # characters of a refused value that an error repeats

Check = Callable[[str, Any], Any]


class ApiError(Exception):
    """What a client is told instead of pictures.

    Attributes:
        status: of the HTTP response.
        message: one sentence that names the field, the rule and the value.
        param: the field, if one is to blame.
        code: for programs.
        headers: of the HTTP response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for.

    Attributes:
        body_bytes: of its JSON.
        prompt_characters: of its prompt.
        pictures: largest `n`.
        guidance_scale: the largest.
        temperature: smallest and largest.
        top_k: the largest.
        side: pixels of the longest side.
        frames: of the longest clip.
        length: tokens of the longest code.
    """

    body_bytes: int = 65_536
    prompt_characters: int = 1_000
    pictures: int = 8
    guidance_scale: float = 30.0
    temperature: tuple[float, float] = (0.01, 10.0)
    top_k: int = 65_536
    side: int = 4_096
    frames: int = 256
    length: int = 65_536


@dataclass(frozen=True)
class Order:
    """A request for pictures, checked field by field.

    Attributes:
        prompt: what the pictures show.
        n: how many.
        seed: of the first picture; None when the service chooses.
        stream: whether to answer with events.
        previews: incomplete pictures wanted in the stream.
        sampling: the options that were given of `SAMPLING`.
        size: what was given of height, width, frames and length.
    """

    prompt: str
    n: int = 1
    seed: int | None = None
    stream: bool = False
    previews: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)


def parse(body: bytes, model: str, limits: Limits) -> Order:
    """Reads the body of a request. Fields that are null count as left out.

    Args:
        body: at most `limits.body_bytes` of JSON.
        model: name of the model that is served.
        limits: how much may be asked for.

    Raises:
        ApiError: 400 for a body or a field that breaks a rule, 404 for another model.
    """
    given = {key: value for key, value in _object(body).items() if value is not None}
    checks = _checks(limits)
    for name in given:
        if name not in checks:
            rule = f"be one of {', '.join(checks)}"
            told = name if name.isprintable() and len(name) <= _SHOWN else None
            raise ApiError(400, _sentence("field", rule, name), told, "unknown_parameter")
    fields = {name: check(name, given[name]) for name, check in checks.items() if name in given}
    if fields.get("model", model) != model:
        raise ApiError(
            404, _sentence("model", f"be {model}", given["model"]), "model", "model_not_found"
        )
    if "prompt" not in fields:
        raise ApiError(
            400, "prompt must be given, got none", "prompt", "missing_required_parameter"
        )
    if fields.get("partial_images") and not fields.get("stream"):
        raise _refusal("partial_images", "be left out without stream", given["partial_images"])
    return Order(
        prompt=fields["prompt"],
        n=fields.get("n", 1),
        seed=fields.get("seed"),
        stream=fields.get("stream", False),
        previews=fields.get("partial_images", 0),
        sampling={name: fields[name] for name in SAMPLING if name in fields},
        size={
            **fields.get("size", {}),
            **{name: fields[name] for name in ("frames", "length") if name in fields},
        },
    )


def told_size(size: Mapping[str, int]) -> dict[str, Any]:
    """What answers say of a size. size: height and width, of clips frames, of some codes length."""
    sides = dict(size)
    return {"size": f"{sides.pop('width')}x{sides.pop('height')}", **sides}


def response(
    created: int, size: Mapping[str, int], pictures: list[dict[str, Any]]
) -> dict[str, Any]:
    """The answer to a request without stream.

    Args:
        created: seconds since 1970.
        size: see `told_size`.
        pictures: `b64_json` and `seed` of each.
    """
    return {"created": created, "data": pictures, "output_format": "png", **told_size(size)}


def picture_event(
    kind: str, created: int, size: Mapping[str, int], picture: Mapping[str, Any]
) -> bytes:
    """A server-sent event with a picture.

    Args:
        kind: "partial_image" or "completed".
        created: seconds since 1970.
        size: see `told_size`.
        picture: what tells it from others: `b64_json`, `seed`, `index`, ...
    """
    name = f"image_generation.{kind}"
    shared = {"type": name, "created_at": created, "output_format": "png", **told_size(size)}
    document = {**shared, "background": "opaque", "quality": "auto", **picture}
    return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()


def error_event(error: ApiError) -> bytes:
    """The server-sent event that ends a stream in which something went wrong."""
    return f"event: error\ndata: {json.dumps(error.body())}\n\n".encode()


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ApiError(400, f"body must be JSON, got something else: {reason}") from None
    if not isinstance(document, dict):
        raise ApiError(400, f"body must be a JSON object, got {_shown(document)}")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _checks(limits: Limits) -> dict[str, Check]:
    """Every field that may be given, and what checks it."""
    return {
        "prompt": _text(limits.prompt_characters, _LAYOUT),
        "model": _text(limits.prompt_characters),
        "n": _whole(1, limits.pictures),
        "size": _sides(limits.side),
        "frames": _whole(1, limits.frames),
        "length": _whole(1, limits.length),
        "response_format": _choice("b64_json"),
        "output_format": _choice("png"),
        "output_compression": _whole(_UNCOMPRESSED, _UNCOMPRESSED),
        "quality": _choice(AUTO, "standard"),
        "background": _choice(AUTO, "opaque"),
        "moderation": _choice(AUTO, "low"),
        "user": _label(limits.prompt_characters),
        "safety_identifier": _label(limits.prompt_characters),
        "style": _absent("say the style in the prompt"),
        "complexity": _absent("guidance_scale and temperature are what there is"),
        "frame_count": _absent("frames asks for the frames of a clip"),
        "frame_duration_ms": _absent("clips have one pace"),
        "svg": _absent("pictures are of pixels"),
        "stream": _flag,
        "partial_images": _whole(0, LARGEST_PREVIEWS),
        "seed": _whole(0, LARGEST_SEED - limits.pictures),
        "guidance_scale": _number(0, limits.guidance_scale),
        "guidance_schedule": _text(limits.prompt_characters),
        "temperature": _number(*limits.temperature),
        "top_k": _whole(0, limits.top_k),
        "top_p": _number(1e-6, 1),
    }


def _text(longest: int, allowed: str = "") -> Check:
    """Text that is not empty, without control characters but the allowed ones."""
    label = _label(longest, allowed)

    def check(name: str, value: Any) -> str:
        if isinstance(value, str) and not value.strip():
            raise _refusal(name, "not be empty", value)
        return label(name, value)

    return check


def _label(longest: int, allowed: str = "") -> Check:
    """`_text` that may be empty."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _refusal(name, "be text", value)
        if len(value) > longest:
            got = f"{len(value)} characters"
            raise ApiError(400, f"{name} must have at most {longest} characters, got {got}", name)
        for character in value:
            if character not in allowed and unicodedata.category(character) in ("Cc", "Cs"):
                raise _refusal(name, "be without control characters", character)
        return value

    return check


def _absent(instead: str) -> Check:
    """A field that other services have. instead: what a client may do."""

    def check(name: str, value: Any) -> None:
        raise _refusal(name, f"be left out here ({instead})", value)

    return check


def _whole(least: int, most: int) -> Check:
    rule = f"be {least}" if least == most else f"be a whole number from {least} to {most}"

    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _refusal(name, rule, value)
        return value

    return check


def _number(least: float, most: float) -> Check:
    def check(name: str, value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            raise _refusal(name, f"be a number from {least:g} to {most:g}", value)
        return value

    return check


def _sides(longest: int) -> Check:
    def check(name: str, value: Any) -> dict[str, int]:
        if value == AUTO:
            return {}
        text = value if isinstance(value, str) else ""
        sides = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
        if sides is None or not all(1 <= int(side) <= longest for side in sides.groups()):
            raise _refusal(name, f"be {AUTO} or WIDTHxHEIGHT, each from 1 to {longest}", value)
        return {"width": int(sides[1]), "height": int(sides[2])}

    return check


def _choice(*values: str) -> Check:
    def check(name: str, value: Any) -> str:
        if value not in values:
            raise _refusal(name, f"be {' or '.join(values)}", value)
        return value

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refusal(name, "be true or false", value)
    return value


def _refusal(name: str, rule: str, value: Any) -> ApiError:
    return ApiError(400, _sentence(name, rule, value), name, "invalid_value")


def _sentence(name: str, rule: str, value: Any) -> str:
    return f"{name} must {rule}, got {_shown(value)}"


def _shown(value: Any) -> str:
    """The value as an error repeats it: short, and with control characters escaped."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**_SHOWN:
        return "a number with too many digits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
