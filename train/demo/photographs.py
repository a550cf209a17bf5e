"""The photographs that scikit-image and scikit-learn ship inside their wheels, and who gets which part.

Opened by path: neither package is imported. Grey pictures, renderings and scientific pictures in the
same folders are left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from runtime.errors import DataError, MissingDependencyError

Box = tuple[int, int, int, int]

PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Photograph:
    """One file of a wheel.

    Attributes:
        package: import name of the package that ships it.
        path: its place inside that package, posix.
        size: (width, height) in pixels; the regions below were chosen for it.
        subject: what it shows, in words for captions.
        licence: what the package says about it.
        regions: split -> (left, top, right, bottom), pixels, never overlapping one another.
    """

    package: str
    path: str
    size: tuple[int, int]
    subject: str
    licence: str
    regions: dict[str, Box]

    @property
    def name(self) -> str:
        """File name without its ending."""
        return Path(self.path).stem


_CC_BY = "CC BY 2.0, attribution in sklearn/datasets/images/README.txt"
_MIDDLEBURY = (
    "Middlebury stereo 2014 (Scharstein et al., GCPR 2014), quarter size; the package states no licence"
)

# The two motorcycle files are one scene seen from two places: both train. The right one lends nothing to
# validation, because its left part shows again what the left one shows right of x = 272.
PHOTOGRAPHS = (
    Photograph(
        "skimage",
        "data/astronaut.png",
        (512, 512),
        "an astronaut in an orange suit",
        "public domain (NASA)",
        {"train": (0, 0, 512, 512)},
    ),
    Photograph(
        "skimage",
        "data/motorcycle_left.png",
        (741, 500),
        "a motorcycle in a workshop",
        _MIDDLEBURY,
        {"val": (0, 0, 272, 500), "train": (272, 0, 741, 500)},
    ),
    Photograph(
        "skimage",
        "data/motorcycle_right.png",
        (741, 500),
        "a motorcycle in a workshop",
        _MIDDLEBURY,
        {"train": (272, 0, 741, 500)},
    ),
    Photograph(
        "sklearn",
        "datasets/images/flower.jpg",
        (640, 427),
        "a flower",
        _CC_BY,
        {"val": (0, 0, 272, 427), "train": (272, 0, 640, 427)},
    ),
    Photograph(
        "skimage",
        "data/rocket.jpg",
        (640, 427),
        "a rocket launch",
        "public domain (SpaceX)",
        {"val": (0, 0, 272, 427), "train": (272, 0, 640, 427)},
    ),
    Photograph(
        "skimage",
        "data/chelsea.png",
        (451, 300),
        "a tabby cat",
        "CC0 (Stefan van der Walt)",
        {"test": (0, 0, 451, 300)},
    ),
    Photograph(
        "sklearn",
        "datasets/images/china.jpg",
        (640, 427),
        "a temple in China",
        _CC_BY,
        {"test": (0, 0, 640, 427)},
    ),
    Photograph(
        "skimage",
        "data/coffee.png",
        (600, 400),
        "a cup of coffee",
        "CC0 (Rachel Michetti)",
        {"test": (0, 0, 600, 400)},
    ),
)


@dataclass(frozen=True)
class LoadedPhotograph:
    """A photograph with its pixels, uint8 `[height, width, 3]`, and the SHA-256 of its file."""

    source: Photograph
    pixels: NDArray[np.uint8]
    sha256: str

    def region(self, split: str) -> NDArray[np.uint8]:
        """The pixels that one split may use, a view."""
        left, top, right, bottom = self.source.regions[split]
        return self.pixels[top:bottom, left:right]


def load_photographs() -> list[LoadedPhotograph]:
    """Reads every photograph of ``PHOTOGRAPHS``, in that order.

    Raises:
        MissingDependencyError: a package is not installed or does not ship the file.
        DataError: a file is damaged or not of the size that the regions were chosen for.
    """
    return [_load(photograph) for photograph in PHOTOGRAPHS]


def _load(photograph: Photograph) -> LoadedPhotograph:
    distribution = PACKAGES[photograph.package]
    advice = 'install it with: pip install "dgsnet[train]"'
    spec = find_spec(photograph.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"demo data needs the photographs inside {distribution}, which is not installed; {advice}"
        )
    path = Path(spec.submodule_search_locations[0]) / photograph.path
    try:
        content = path.read_bytes()
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except FileNotFoundError as err:
        raise MissingDependencyError(
            f"the installed {distribution} has no {photograph.path}, which the demo data needs; {advice}"
        ) from err
    except (OSError, UnidentifiedImageError) as err:
        raise DataError(
            f"{photograph.path} of {distribution} cannot be read ({err}); reinstall {distribution}"
        ) from err
    found = (pixels.shape[1], pixels.shape[0])
    if found != photograph.size:
        raise DataError(
            f"{photograph.path} of {distribution} is {found[0]}x{found[1]} pixels, expected "
            f"{photograph.size[0]}x{photograph.size[1]}; install another version of {distribution}"
        )
    return LoadedPhotograph(photograph, pixels, hashlib.sha256(content).hexdigest())
