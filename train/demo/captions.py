"""Captions from the subject of a photograph and what the saved picture shows; never from its class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def caption(subject: str, picture: NDArray[np.uint8]) -> str:
    """One sentence for one picture.

    Args:
        subject: what the photograph shows, with its article.
        picture: uint8 `[H, W, 3]`, as saved. Brightness, warmth and contrast are means over the whole
            picture, which a reconstruction keeps; sharpness, which it does not, is left out on purpose.
    """
    red, green, blue = (float(mean) for mean in picture.reshape(-1, 3).mean(axis=0))
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    spread = float((picture @ np.array([0.299, 0.587, 0.114])).std())
    tone = "dark" if luminance < 85 else "bright" if luminance > 150 else "evenly lit"
    colour = "warm colours" if red - blue > 20 else "cool colours" if blue - red > 20 else "neutral colours"
    contrast = "low contrast" if spread < 40 else "high contrast" if spread > 70 else "medium contrast"
    return f"a photo of {subject}, {tone}, {colour}, {contrast}"
