"""The models a page can draw with: the first one, the bundled ones, and what visitors load.

Knows how pipelines are loaded; knows nothing about pages or drawing.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from visual_ar.app.device_thread import DeviceThread
from visual_ar.assets import bundled, local
from visual_ar.pipeline import VisualARPipeline
from visual_ar.text_file import read_lines, read_text

KEPT = 3
"""So many models besides the first stay in memory, those used last."""
PROMPTS = "prompts.txt"
"""A file of a model's folder: prompts it was trained on, one a line."""
_CARD_CHARACTERS = 100_000
_CODE_OR_LINK = re.compile(
    r"```.*?```|`[^`\n]*`"
    r"|(?P<image>!?)\[(?P<text>(?:!\[[^\[\]]*\]\([^()]*\)|[^\[\]])*)\]\((?P<target>[^()]*)\)",
    re.DOTALL,
)
_ABSOLUTE = re.compile(r"\s*<?(https?://|mailto:)", re.IGNORECASE)


class Shelf:
    """Pipelines by name, safe between threads.

    Args:
        pipe: the first one; others are loaded to its device and number format.
        name: of the first one.
        thread: in which all of them compute.
    """

    def __init__(self, pipe: VisualARPipeline, name: str, thread: DeviceThread) -> None:
        self.first = name
        self.thread = thread
        self._pipe = pipe
        self._loaded: OrderedDict[str, VisualARPipeline] = OrderedDict()
        self._known: list[str] = list(dict.fromkeys((name, *bundled())))
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """What `get` knows: the first model, the bundled ones, those that were loaded."""
        return list(self._known)  # without the lock, which a long download holds

    def get(self, name: str) -> VisualARPipeline:
        """The pipeline of a name, loaded anew where it was forgotten.

        Raises:
            ValueError: no model of the page has this name, or its files are damaged.
            OSError: its files are gone.
        """
        if name not in self.names():
            known = ", ".join(self.names())
            raise ValueError(
                f"model must be one of {known}, or be loaded on the tab Models first, got {name!r}"
            )
        return self.load(name)

    def load(self, name: str) -> VisualARPipeline:
        """Loads a bundled model, a folder or a repository of the Hugging Face hub, once.

        Raises:
            ValueError: no such pipeline is there, or its files are damaged.
            OSError: nothing of that name, or the hub cannot be reached.
        """
        if name == self.first:
            return self._pipe
        with self._lock:
            if name not in self._loaded:
                pipe = VisualARPipeline.from_pretrained(name, dtype=self._pipe.number_format)
                self._loaded[name] = pipe.to(self._pipe.device)
            self._loaded.move_to_end(name)
            if len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
            if name not in self._known:
                self._known.append(name)
            return self._loaded[name]


def folder_of(name: str) -> Path | None:
    """The folder of a model that lies on this machine under its bundled name or its path."""
    folder = local(name, bundled())
    return folder if (folder / "model_index.json").is_file() else None


def known_subjects(pipe: VisualARPipeline, name: str) -> list[str]:
    """What a person may ask a model for: its classes, or prompts that lie beside it."""
    if pipe.config.class_names:
        return list(pipe.config.class_names)
    folder = folder_of(name)
    if folder is None or pipe.conditioner.known or not (folder / PROMPTS).is_file():
        return []
    return read_lines(folder / PROMPTS)


def card(name: str) -> str:
    """The model card as Markdown for a page; a sentence where there is none.

    Its header for programs is left out, and so is what leads to other files of the model.

    Raises:
        OSError: the file cannot be read.
    """
    folder = folder_of(name)
    path = None if folder is None else folder / "README.md"
    if path is None or not path.is_file():
        return f"No model card lies beside {name}."
    try:
        text = read_text(path)[:_CARD_CHARACTERS]
    except ValueError:
        return f"The model card that lies beside {name} is no text."
    if text.startswith("---\n"):
        text = text[4:].partition("\n---\n")[2]
    return _standing_alone(text).strip()


def _standing_alone(text: str) -> str:
    """Markdown without pictures that lie beside it; of links to what lies there, their text."""

    def shown(found: re.Match[str]) -> str:
        if found["target"] is None:
            return found[0]  # code, where brackets mean something else
        absolute = _ABSOLUTE.match(found["target"])
        if found["image"]:
            return found[0] if absolute else ""
        inside = _standing_alone(found["text"])  # may be a picture
        return f"[{inside}]({found['target']})" if absolute and inside else inside

    return _CODE_OR_LINK.sub(shown, text)


def describe(pipe: VisualARPipeline) -> dict[str, Any]:
    """What a pipeline consists of and draws by default, as plain data."""
    parts = {
        key: f"{type(part).__name__}, {sum(p.numel() for p in part.parameters()):,} parameters"
        if hasattr(part, "parameters")
        else f"{type(part).__name__} {json.dumps(_public(part.config))}"
        for key, part in pipe.components.items()
        if part is not None
    }
    config = _public(pipe.config)
    defaults = {key: value for key, value in config.items() if key not in parts}
    names = defaults.pop("class_names", None)
    classes = {"classes": len(names)} if names else {}
    where = {"device": str(pipe.device), "dtype": str(pipe.number_format)}
    return {**parts, **classes, **defaults, **where}


def _public(config: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and not isinstance(value, tuple)
    }
