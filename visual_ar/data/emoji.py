"""Prepares 64x64 Noto emoji with prompts; knows two npm packages and the splits, no training."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visual_ar.data.dataset import Dataset, digest, reusable, save, save_pack
from visual_ar.data.npm import NpmPackage, Progress, fetch_package, read_members
from visual_ar.picture_file import read_picture

PICTURES = NpmPackage(
    "emoji-datasource-google",
    "16.0.0",
    "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
NAMES = NpmPackage(
    "unicode-emoji-json",
    "0.9.0",
    "HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
)
COUNT = 3786
SHA256 = "c821db450f6860c39a87aaacd8cc38701c58dea7758dcb514f18fc3d6fdebab2"
TOKENIZER_TEST = 200
TONE_TEST = 100
SIZE = 64
FOLDER = "img/google/64/"
SPLIT_SEED = "visual-ar emoji splits 1"
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
QUOTES = str.maketrans({"\u2019": "'", "\u201c": '"', "\u201d": '"'})


def prepare_emoji(output: Path, pack: bool = False, progress: Progress | None = None) -> Path:
    """Writes the emoji dataset, or returns at once when it is already there and intact.

    Pictures are uint8 RGB, 64x64, composited on white, in the order of the Unicode emoji charts.
    Split "tone-test" holds 100 (person, skin tone) pairs, each of another person, that no
    training may see; "tokenizer-test" holds 200 pictures that tokenizer training may not see
    (they are drawn uniformly, so about half of them are skin tone variants of training pictures).

    Args:
        output: Folder of the result; tarballs are kept in ``downloads`` beside it.
        pack: Also write ``emoji-pack.zip`` (lossless) into the folder.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The pack when asked for, else the folder.

    Raises:
        FileNotFoundError: The `npm` client is not installed.
        OSError: A package could not be fetched or differs from the pinned one.
        ValueError: The packages do not hold the expected pictures and names.
    """
    dataset = reusable(output, "emoji", _sources())
    if dataset is None:
        cache = output.parent / "downloads"
        pictures = fetch_package(PICTURES, cache, progress)
        names = fetch_package(NAMES, cache, progress)
        dataset = _build(pictures, names, progress)
        save(dataset, output)
    if not pack:
        return output
    target = output / "emoji-pack.zip"
    save_pack(dataset, target)
    return target


def _build(pictures: Path, names: Path, progress: Progress | None) -> Dataset:
    """Reads both tarballs into a checked dataset."""
    images: dict[str, NDArray[np.uint8]] = {}
    entries: list[dict[str, Any]] = []
    for name, content in read_members(pictures, _is_wanted):
        if name == "emoji.json":
            entries = json.loads(content)
            continue
        images[name.removeprefix(FOLDER)] = _on_white(name, content)
        if progress is not None and len(images) % 64 == 0:
            progress("read emoji", min(len(images), COUNT), COUNT)
    records = _records(entries, _cldr_names(names))
    missing = [record["image"] for record in records if record["image"] not in images]
    if missing or len(records) != COUNT:
        raise ValueError(
            f"{PICTURES.spec} must hold {COUNT} named pictures, got {len(records)} names, "
            f"{len(missing)} of them without a picture"
        )
    array = np.stack([images[record["image"]] for record in records])
    if digest(array) != SHA256:
        raise ValueError(f"the emoji pixels must have sha256 {SHA256}, got {digest(array)}")
    items = _with_splits(records)
    splits = [item["split"] for item in items]
    if progress is not None:
        progress("read emoji", COUNT, COUNT)
    return Dataset("emoji", array, splits, items=items, manifest=_manifest(array, splits))


def _is_wanted(name: str) -> bool:
    return name == "emoji.json" or name.startswith(FOLDER)


def _on_white(name: str, content: bytes) -> NDArray[np.uint8]:
    """Decodes a picture and composites it on white: uint8 [64, 64, 3]."""
    picture = np.asarray(read_picture(content, name))
    if picture.shape[:2] != (SIZE, SIZE):
        raise ValueError(f"{name} must be {SIZE}x{SIZE} pixels, got {picture.shape[:2]}")
    return picture


def _cldr_names(tarball: Path) -> dict[str, str]:
    """CLDR short names by emoji, without variation selectors."""
    name = "data-by-emoji.json"
    members = dict(read_members(tarball, lambda member: member == name))
    if name not in members:
        raise ValueError(f"{NAMES.spec} must hold {name}, found none")
    table = json.loads(members[name])
    return {emoji.replace("\ufe0f", ""): entry["name"] for emoji, entry in table.items()}


def _records(entries: list[dict[str, Any]], cldr: dict[str, str]) -> list[dict[str, Any]]:
    """One record a picture: every emoji followed by its skin tone variants."""
    entries = sorted(entries, key=lambda entry: (entry["sort_order"], entry["unified"]))
    names = [_name(entry, cldr) for entry in entries]
    aliases = _aliases(entries, names)
    records = []
    for entry, name, others in zip(entries, names, aliases, strict=True):
        records.append(_record(entry, entry, name, others, None))
        for codes, variant in entry.get("skin_variations", {}).items():
            # Two people of one tone are named once, as CLDR does.
            tone = ", ".join(dict.fromkeys(TONES[code] for code in codes.split("-")))
            records.append(_record(entry, variant, name, others, tone))
    return records


def _record(
    entry: dict[str, Any], variant: dict[str, Any], name: str, aliases: list[str], tone: str | None
) -> dict[str, Any]:
    suffix = "" if tone is None else f", {tone}"
    return {
        "name": name,
        "tone": tone,
        "prompt": name + suffix,
        "aliases": [alias + suffix for alias in aliases],
        "group": name,
        "category": entry["category"],
        "subcategory": entry["subcategory"],
        "unicode": variant["unified"],
        "image": variant["image"],
    }


def _name(entry: dict[str, Any], cldr: dict[str, str]) -> str:
    """The CLDR name in lower case; the five tone swatches are named after their tone."""
    if entry["unified"] in TONES:
        return TONES[entry["unified"]]
    emoji = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
    key = emoji.replace("\ufe0f", "")
    if key not in cldr:
        raise ValueError(f"{NAMES.spec} must name the emoji {entry['unified']}, found no name")
    return cldr[key].lower().translate(QUOTES)


def _aliases(entries: list[dict[str, Any]], names: list[str]) -> list[list[str]]:
    """Other names of each emoji: those that no other emoji has as a name or alias."""
    candidates = []
    for entry, name in zip(entries, names, strict=True):
        short = [text.replace("_", " ").replace("-", " ") for text in entry["short_names"]]
        texts = dict.fromkeys([*short, (entry["name"] or name).lower().translate(QUOTES)])
        candidates.append([text for text in texts if text != name])
    uses = Counter(names)
    uses.update(alias for others in candidates for alias in others)
    return [[alias for alias in others if uses[alias] == 1] for others in candidates]


def _with_splits(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds the split to each record; a hash of the emoji decides, so order and version do not."""
    ranked = sorted(range(len(records)), key=lambda index: _rank(records[index]["unicode"]))
    tone_test: dict[str, int] = {}
    for index in ranked:
        record = records[index]
        is_person = record["subcategory"].startswith(("person", "family"))
        if is_person and record["tone"] is not None and len(tone_test) < TONE_TEST:
            tone_test.setdefault(record["group"], index)
    held_out = set(tone_test.values())
    tokenizer_test = set([index for index in ranked if index not in held_out][:TOKENIZER_TEST])
    items = []
    for index, record in enumerate(records):
        split = "tokenizer-test" if index in tokenizer_test else "train"
        items.append({**record, "split": "tone-test" if index in held_out else split})
    return items


def _rank(unicode: str) -> str:
    return hashlib.sha256(f"{SPLIT_SEED} {unicode}".encode()).hexdigest()


def _manifest(pictures: NDArray[np.uint8], splits: list[str]) -> dict[str, Any]:
    return {
        "name": "emoji",
        "shape": list(pictures.shape),
        "pictures_sha256": digest(pictures),
        "counts": dict(Counter(splits)),
        "split_seed": SPLIT_SEED,
        "sources": _sources(),
        "licence": "Noto Emoji pictures: Apache-2.0; emoji data and names: MIT",
        "attribution": "Noto Emoji, Google Inc.; emoji-data, Cal Henderson; unicode-emoji-json",
    }


def _sources() -> list[dict[str, str]]:
    return [{**package._asdict(), "registry": "npm"} for package in (PICTURES, NAMES)]
