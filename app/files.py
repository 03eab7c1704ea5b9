"""Puts pictures into files that are written once; knows nothing but pictures.

Gradio writes a picture that comes a second time over its own file, and a browser that loads it at
that moment may show a broken one for good. Previews that equal the last one are common.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from visual_ar.png import Drawn, png_bytes
from visual_ar.write_beside import written_beside


def as_file(drawn: Drawn, folder: Path) -> str:
    """The path of a PNG with a picture or a clip, written unless it is there."""
    content = png_bytes(drawn)
    path = folder / f"{hashlib.sha256(content).hexdigest()[:20]}.png"
    if not path.exists():
        with written_beside(path) as part:
            part.write_bytes(content)
    return str(path)
