"""The JSON document that every evaluation ends in: how it was made, what it says; measures nothing.

Its `protocol` holds everything that must agree before two results may be compared.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from visual_ar.data.dataset import write_file

FORMAT = 1
LIBRARIES = (
    "visual-ar",
    "torch",
    "torchvision",
    "torch-fidelity",
    "timm",
    "diffusers",
    "numpy",
    "scipy",
    "pillow",
    "open_clip_torch",
)
_PARTS = ("evaluation", "protocol", "results")


def document(
    evaluation: str,
    protocol: Mapping[str, Any],
    inputs: Mapping[str, Any],
    results: Mapping[str, Any],
    seeds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What an evaluation says, as plain data.

    Args:
        evaluation: which one, such as "fid".
        protocol: network, counts, preprocessing: what must agree for a comparison.
        inputs: what was measured, with paths, hashes and counts.
        results: name of a figure -> the figure.
        seeds: of everything random, by what they decide.
    """
    return {
        "format": FORMAT,
        "evaluation": evaluation,
        "versions": versions(),
        "protocol": dict(protocol),
        "inputs": dict(inputs),
        "seeds": dict(seeds or {}),
        "results": dict(results),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a figure depends on; what is missing is not."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_result(result: Mapping[str, Any], path: Path) -> None:
    """Writes a result as JSON; the file appears whole or not at all."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    # What UTF-8 has no bytes for, such as a file name in Latin-1, is escaped as JSON does it.
    content = text.encode("utf-8", "backslashreplace")
    write_file(path, lambda file: file.write(content))


def read_result(path: Path) -> dict[str, Any]:
    """Reads what `write_result` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not the result of an evaluation.
    """
    if not path.is_file():
        raise FileNotFoundError(f"result must be an existing file, got {str(path)!r}")
    try:
        result = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"result must be JSON, got {str(path)!r}: {error}") from None
    whole = isinstance(result, dict) and all(part in result for part in _PARTS)
    if not whole or result.get("format") != FORMAT:
        raise ValueError(
            f"result must be written by visual-ar evaluate (format {FORMAT}), got {str(path)!r}"
        )
    return result


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
