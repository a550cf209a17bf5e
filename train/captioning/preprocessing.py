"""A captioning model's own preprocessing: resize the shorter side, crop the centre, normalise.

Captioning needs what the picture shows, so it sees the whole of it at low resolution; the detector's patch
mosaic (runtime/patches/selection.py) is made for the opposite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decode import MAX_PIXELS
from runtime.errors import ImageError, UsageError


@dataclass(frozen=True)
class CaptionPreprocessing:
    """What open_clip's ``preprocess_cfg`` of a model asks for.

    Attributes:
        side: of the square input, pixels.
        mean: of each colour, on the scale 0..1.
        std: of each colour, on the scale 0..1.
        interpolation: "bicubic" or "bilinear".
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    @classmethod
    def from_config(cls, name: str, config: dict[str, Any]) -> CaptionPreprocessing:
        """Reads a model's ``preprocess_cfg``.

        Raises:
            UsageError: it asks for something else than a square centre crop.
        """
        size = config["size"]
        sides = {size} if isinstance(size, int) else set(size)
        found = (config["resize_mode"], config["interpolation"], len(sides))
        if found[0] != "shortest" or found[1] not in ("bicubic", "bilinear") or found[2] != 1:
            raise UsageError(
                f"model {name}: its preprocessing is {config['resize_mode']}, {config['interpolation']}, "
                f"size {size}, expected a square centre crop after resizing the shorter side; choose another "
                "model"
            )
        return cls(sides.pop(), tuple(config["mean"]), tuple(config["std"]), config["interpolation"])

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the model's input for one picture.

        Args:
            pixels: uint8 ``[H, W, 3]``, RGB.

        Returns:
            float32 ``[3, side, side]``, normalised.

        Raises:
            ImageError: the picture is so narrow that resizing it would need too much memory.
        """
        from PIL import Image

        height, width = pixels.shape[:2]
        scaled = [int(self.side * length / min(height, width)) for length in (width, height)]
        if scaled[0] * scaled[1] > MAX_PIXELS:
            raise ImageError(
                f"found {width} x {height} pixels, too narrow to be resized to "
                f"{self.side} on its shorter side"
            )
        resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
        resized = Image.fromarray(pixels).resize((scaled[0], scaled[1]), resample[self.interpolation])
        left, top = (round((length - self.side) / 2) for length in scaled)
        crop = resized.crop((left, top, left + self.side, top + self.side))
        unit = np.asarray(crop, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        mean, std = (np.array(row, dtype=np.float32)[:, None, None] for row in (self.mean, self.std))
        return np.ascontiguousarray((unit - mean) / std)
