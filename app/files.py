"""Puts pictures into files that are written once; knows nothing but pictures.

Gradio writes a picture that comes a second time over its own file, and a browser that loads it at
that moment may show a broken one for good. Previews that equal the last one are common.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from PIL import Image


def as_file(image: Image.Image, folder: Path) -> str:
    """The path of a PNG with the picture's content, written unless it is there."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    path = folder / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:20]}.png"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(buffer.getvalue())
        os.replace(part, path)
    return str(path)
