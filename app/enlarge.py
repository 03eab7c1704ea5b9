"""Shows small pictures in larger pixels, without blurring them; knows nothing but pictures."""

from PIL import Image

from visual_ar.png import Drawn

SIDE = 384
"""Pictures are shown about so many pixels wide, and never smaller than they are."""


def enlarged(image: Image.Image) -> Image.Image:
    """The picture with every pixel drawn as a square of a whole number of pixels."""
    scale = max(SIDE // image.width, 1)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def enlarged_drawn(drawn: Drawn) -> Drawn:
    """The same of a picture or of every frame of a clip."""
    if isinstance(drawn, Image.Image):
        return enlarged(drawn)
    return [enlarged(frame) for frame in drawn]
