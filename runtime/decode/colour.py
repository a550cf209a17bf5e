"""Any of Pillow's pixel modes as 8-bit RGB, the same for a part of a picture as for all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from PIL import Image

    Conversion: TypeAlias = Callable[[Image.Image], Image.Image]

# What transparent pixels lie on.
BACKGROUND = (255, 255, 255)


def conversion_for(image: Image.Image, name: str) -> Conversion:
    """Returns what turns any part of a decoded picture into mode RGB; it looks at each pixel by itself.

    Raises:
        ImageError: the range of the samples is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _rgb_from_16_bit
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{name}: found 32-bit samples of unknown range, expected 8 or 16 bits; convert it to 8 bits"
        )
    if image.has_transparency_data:
        return _flattened
    return _plain if image.mode == "RGB" else _converted


def _plain(part: Image.Image) -> Image.Image:
    return part


def _converted(part: Image.Image) -> Image.Image:
    return part.convert("RGB")


def _flattened(part: Image.Image) -> Image.Image:
    from PIL import Image

    # Pillow knows no direct way from premultiplied grey.
    layered = (part.convert("LA") if part.mode == "La" else part).convert("RGBA")
    flat = Image.new("RGB", part.size, BACKGROUND)
    flat.paste(layered.convert("RGB"), mask=layered.getchannel("A"))
    return flat


def _rgb_from_16_bit(part: Image.Image) -> Image.Image:
    from PIL import Image

    # Pillow reads 16-bit colour by its high byte; grey must come out the same.
    samples = np.asarray(part)
    grey: NDArray[np.uint8] = (samples >> 8).astype(np.uint8)
    transparent = part.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = BACKGROUND[0]
    return Image.fromarray(grey).convert("RGB")
