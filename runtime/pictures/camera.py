"""Frames of a camera or a video file, through OpenCV where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError, MissingDependencyError
from runtime.names import printable_name


def frames(source: str, *, every: int = 1) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yields (name, RGB pixels uint8 ``[H, W, 3]``) of every Nth frame until the source ends.

    Video codecs change pixels, which a detector trained on still pictures may take for something else.

    Args:
        source: number of a camera, or the path or address of a video.
        every: N.

    Raises:
        MissingDependencyError: OpenCV is not installed.
        ImageError: the source cannot be opened.
    """
    cv2 = _opencv()
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    name = printable_name(source)
    try:
        if not capture.isOpened():
            raise ImageError(f"{name}: found no camera or video that opens; check its number or path")
        number = 0
        while capture.grab():
            if number % every == 0:
                found, frame = capture.retrieve()
                if not found:
                    break
                yield f"{name}#{number}", np.ascontiguousarray(frame[:, :, ::-1])
            number += 1
    finally:
        capture.release()


def _opencv() -> Any:
    try:
        return import_module("cv2")
    except ImportError as err:
        raise MissingDependencyError(
            "--camera needs OpenCV, which does not import; pip install opencv-python-headless"
        ) from err
