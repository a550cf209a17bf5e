"""The pictures that both trainers read: photographs enlarged to one size, with a sensor's noise, as JPEG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.layout import LABEL_FOLDERS, Sample, find_samples
from train.demo.captions import caption
from train.demo.photographs import LoadedPhotograph, load_photographs

JPEG_QUALITY = 90
# Sides of the crops that are enlarged, and the noise's standard deviations in grey levels.
_CROP_SIDES = (200, 300)
_NOISE = (0.5, 4.0)
# More pictures than this are the same ones again under other names: making them takes longer than a lap.
_DIFFERENT = 32


def write_pictures(root: Path, count: int, side: int) -> tuple[list[Sample], list[str]]:
    """Writes JPEG pictures below a folder; equal arguments give equal pictures. Labels mean nothing.

    Args:
        root: receives train/photographs/{0_real,1_fake}/*.jpg.
        count: how many; half of them get either label.
        side: width and height in pixels.

    Returns:
        (samples in their order, a caption of each).

    Raises:
        MissingDependencyError: the photographs' packages are not installed.
    """
    photographs = load_photographs()
    made: list[tuple[bytes, str]] = []
    captions = {}
    for index in range(count):
        if index < _DIFFERENT:
            made.append(_picture(photographs[index % len(photographs)], side, seed=index))
        content, words = made[index % _DIFFERENT]
        path = root / "train" / "photographs" / list(LABEL_FOLDERS)[index % 2] / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        captions[path] = words
    samples = find_samples(root, "train")
    return samples, [captions[sample.path] for sample in samples]


def _picture(photograph: LoadedPhotograph, side: int, *, seed: int) -> tuple[bytes, str]:
    """Returns a JPEG file's content and its caption."""
    draw = np.random.default_rng(seed)
    crop = int(draw.integers(*_CROP_SIDES))
    top, left = (int(draw.integers(length - crop)) for length in photograph.pixels.shape[:2])
    cut = Image.fromarray(photograph.pixels[top : top + crop, left : left + crop])
    pixels = np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    noise = draw.normal(0, draw.uniform(*_NOISE), pixels.shape)
    picture = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue(), caption(photograph.source.subject, picture)
