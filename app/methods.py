"""Decoding methods on a page: built from what controls hold, tried, and told in a sentence.

What methods and options there are says `method_options`. Knows pipelines; knows nothing about
pages or pictures.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from visual_ar.accel.loop.contract import Decoding
from visual_ar.method_options import build, options
from visual_ar.pipeline import VisualARPipeline


def make(method: str, values: Mapping[str, Any], shipped: Decoding) -> Decoding:
    """Builds a method from what controls hold.

    Args:
        method: name of `visual_ar.accel.METHODS`.
        values: by option, text or flags; those that the method does not have are left out, and an
            empty text counts as nothing said.
        shipped: the model's own method, see `method_options.build`.

    Raises:
        ValueError: unknown name, or a value that an option cannot hold or the method refuses.
    """
    given = {name: values[name] for name in options(method) if name in values}
    said = {k: v for k, v in given.items() if not isinstance(v, str) or v.strip()}
    return build(method, said, shipped)


def with_method(pipe: VisualARPipeline, method: Decoding) -> VisualARPipeline:
    """A pipeline of the same components that decodes with another method; shares the weights."""
    parts = {**pipe.components, "scheduler": method}
    named = inspect.signature(VisualARPipeline).parameters
    rest = {name: pipe.config[name] for name in named if name not in parts}
    return VisualARPipeline(**parts, **rest)


def verdict(method: Decoding, pipe: VisualARPipeline) -> str:
    """Says whether a method keeps the law of a pipeline's model.

    Raises:
        ValueError: it cannot serve the model, its decode order or its tokenizer.
    """
    layout = pipe.model.layout(pipe.image_tokenizer.grid(pipe.size))
    method.check(pipe.cast(layout))
    if method.lossless:
        return "lossless=True: pictures follow the model's own law."
    return "lossless=False: pictures no longer follow the model's law exactly."
