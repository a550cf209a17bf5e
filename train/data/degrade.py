"""What happens to a picture on its way through the web: recompression, change of scale, blur.

Evaluation applies one of these to the pictures of both classes alike, after decoding and before the choice of
patches; training may draw them as augmentation. Each is a pure function of its arguments for one version of
Pillow, which does the work. Pillow is imported on the first call.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError, UsageError, one_line
from runtime.spec import PATCH_SIDE

if TYPE_CHECKING:
    from PIL import Image

# Lowest and highest strength of each kind.
LIMITS: dict[str, tuple[float, float]] = {
    "jpeg": (1, 100),
    "webp": (0, 100),
    "resize": (0.05, 4),
    "blur": (0, 100),
}
# Longest side that the format holds, pixels.
LONGEST_SIDES = {"jpeg": 65_500, "webp": 16_383}
_WHOLE_NUMBERS = ("jpeg", "webp")
ROBUSTNESS = ("jpeg:95", "jpeg:75", "jpeg:50", "webp:80", "resize:0.5", "blur:1.0")
_EXPECTED = "jpeg:1..100, webp:0..100, resize:0.05..4 or blur:0..100, such as jpeg:75 or resize:0.5"
_CHROMA_HALVED = 2  # Pillow's number for 4:2:0


def jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Returns the picture after a baseline JPEG of this quality with 4:2:0 chroma at every quality.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        quality: 1 to 100, libjpeg's scale.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        ImageError: a side is longer than the format holds (65,500 pixels).
    """
    return _encoded(image, "JPEG", quality=quality, subsampling=_CHROMA_HALVED)


def webp(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Returns the picture after a lossy WebP of this quality, whose chroma is always 4:2:0.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        quality: 0 to 100, libwebp's scale.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        ImageError: a side is longer than the format holds (16,383 pixels).
    """
    return _encoded(image, "WEBP", quality=quality, method=4)


def resize(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Returns the picture at another scale, by Pillow's bicubic filter, which smooths before it shrinks.

    A picture that would have a side under 32 pixels, of which no patch can be taken, is shrunk only until its
    shorter side has 32; one that is there already stays as it is. So a column of an evaluation holds the same
    pictures as the column without a change.

    Args:
        image: uint8 ``[H, W, 3]``.
        scale: above 0; of both sides, which are rounded to whole pixels.

    Returns:
        uint8 ``[h, w, 3]``.
    """
    from PIL import Image

    height, width = image.shape[:2]
    factor = max(scale, min(1.0, PATCH_SIDE / min(height, width)))
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    if size == (width, height):
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)


def blur(image: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    """Returns the picture after Pillow's Gaussian blur, which is three box blurs one after the other.

    Args:
        image: uint8 ``[H, W, 3]``.
        sigma: standard deviation in pixels; 0 changes nothing.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    from PIL import Image, ImageFilter

    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)), dtype=np.uint8)


@dataclass(frozen=True)
class Degradation:
    """One degradation with its strength; call it with a picture.

    Attributes:
        kind: "jpeg", "webp", "resize" or "blur".
        strength: the quality, scale or standard deviation.
    """

    kind: str
    strength: float

    @property
    def name(self) -> str:
        """``kind:strength``, such as "jpeg:75" and "blur:1.0"; ``degradation_from_name`` reads it."""
        return f"{self.kind}:{int(self.strength) if self.kind in _WHOLE_NUMBERS else float(self.strength)}"

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns the degraded picture: uint8 ``[H, W, 3]`` to uint8 ``[h, w, 3]``."""
        if self.kind == "jpeg":
            return jpeg(image, int(self.strength))
        if self.kind == "webp":
            return webp(image, int(self.strength))
        return resize(image, self.strength) if self.kind == "resize" else blur(image, self.strength)


def degradation_from_name(name: str) -> Degradation:
    """Reads a name such as "jpeg:75", "webp:80", "resize:0.5" or "blur:1.0".

    Raises:
        UsageError: the kind is unknown or the strength is not a number within its limits.
    """
    kind, _, text = name.partition(":")
    if kind not in LIMITS:
        raise UsageError(f"degradation: found {name!r}, expected {_EXPECTED}")
    try:
        strength = float(text)
    except ValueError as err:
        raise UsageError(f"degradation: found {name!r}, expected {_EXPECTED}") from err
    low, high = LIMITS[kind]
    is_broken = kind in _WHOLE_NUMBERS and math.isfinite(strength) and strength != int(strength)
    if not low <= strength <= high or is_broken:  # refuses NaN, which compares false with everything
        number = "a whole number" if kind in _WHOLE_NUMBERS else "a number"
        raise UsageError(f"degradation: found {name!r}, expected {number} from {low} to {high} after {kind}:")
    return Degradation(kind, strength)


def _encoded(image: NDArray[np.uint8], file_format: str, **options: int) -> NDArray[np.uint8]:
    from PIL import Image

    stream = io.BytesIO()
    try:
        Image.fromarray(image).save(stream, file_format, **options)
    except (OSError, ValueError) as err:
        height, width = image.shape[:2]
        raise ImageError(
            f"{width} x {height} pixels cannot be written as {file_format} ({one_line(err)}); "
            "leave this degradation out or the picture"
        ) from err
    written: Image.Image = Image.open(stream, formats=[file_format])
    with written:
        return np.array(written.convert("RGB"), dtype=np.uint8)
