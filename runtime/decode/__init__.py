"""From a file, bytes, a Pillow picture or an array to RGB pixels: the one decoder of the project.

What it does to a picture: the first frame of an animation is taken; EXIF orientation is applied (an
unreadable EXIF block counts as none); transparency is flattened on white; palette, CMYK and other modes
become RGB by Pillow's own rules; of 16-bit samples the high byte is kept; embedded colour profiles are not
applied, as in the training of CLIP. Nothing is ever resized, and JPEGs are never decoded at a reduced scale.
Pillow is imported on the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.decode.colour import BACKGROUND
from runtime.decode.formats import FORMATS
from runtime.decode.limits import MAX_PIXELS, MAX_SIDE, DecodeLimits
from runtime.decode.reading import decode_image, read_pixels, source_name

if TYPE_CHECKING:
    from runtime.decode.reading import Source as Source

__all__ = [
    "BACKGROUND",
    "FORMATS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "DecodeLimits",
    "decode_image",
    "read_pixels",
    "source_name",
]
