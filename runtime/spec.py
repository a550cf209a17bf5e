"""What a detector's graph takes and gives, and how a mosaic is made: the only home of these constants.

Imports the standard library alone, so that every room can read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.errors import SpecError

INPUT_NAME = "images"
LOGIT_NAME = "logit"
EMBEDDING_NAME = "embedding"
BATCH_AXIS = "batch"

PATCH_SIDE = 32
GRID_SIDE = 7
PATCH_COUNT = GRID_SIDE * GRID_SIDE
MOSAIC_SIDE = GRID_SIDE * PATCH_SIDE
LOWEST_COUNT = 24
HIGHEST_COUNT = 25

# Not CLIP's statistics: DGS-Net normalises with ImageNet's, and so were the published weights trained.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

CLASSES = ("real", "generated")

# Cell k of the mosaic shows selected[PERMUTATION[k]]. A literal, because the released code shuffles at
# test time too and so gives one file another verdict in every run.
# fmt: off
PERMUTATION = (
    20, 3, 39, 36, 23, 45, 12,
    19, 1, 35, 9, 28, 42, 6,
    21, 41, 13, 48, 16, 24, 10,
    22, 34, 26, 15, 30, 14, 7,
    0, 46, 40, 31, 25, 37, 27,
    8, 4, 18, 47, 11, 44, 38,
    2, 17, 32, 29, 5, 43, 33,
)
# fmt: on


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the mosaic that the graph takes, as data.

    Attributes:
        patch: side of a square patch, in pixels.
        lowest: how many patches of the lowest entropy are taken.
        highest: how many patches of the highest entropy are taken.
        permutation: cell k of the mosaic shows selected patch ``permutation[k]``.
        mean: per-channel mean of pixels scaled to 0..1; lives inside the graph.
        std: per-channel standard deviation of pixels scaled to 0..1; lives inside the graph.
        colour: channel order of the mosaic.
        decoder: what turned the file's bytes into pixels.
    """

    patch: int = PATCH_SIDE
    lowest: int = LOWEST_COUNT
    highest: int = HIGHEST_COUNT
    permutation: tuple[int, ...] = PERMUTATION
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD
    colour: str = "RGB"
    decoder: str = "pillow"

    def to_json(self) -> dict[str, Any]:
        """Returns the form that checkpoints and manifests store."""
        return {
            "patch": self.patch,
            "lowest": self.lowest,
            "highest": self.highest,
            "permutation": list(self.permutation),
            "mean": list(self.mean),
            "std": list(self.std),
            "colour": self.colour,
            "decoder": self.decoder,
        }

    @classmethod
    def from_json(cls, value: object) -> Preprocessing:
        """Reads what ``to_json`` wrote.

        Raises:
            SpecError: a key is missing or unknown, a number is out of range, or the geometry is one
                that this version cannot select patches for.
        """
        if not isinstance(value, dict):
            raise SpecError(f"preprocessing: found {type(value).__name__}, expected an object")
        expected = set(cls.__dataclass_fields__)
        if set(value) != expected:
            odd = ", ".join(sorted(set(value) ^ expected))
            raise SpecError(f"preprocessing: missing or unknown keys: {odd}; expected {sorted(expected)}")
        counts = {"patch": PATCH_SIDE, "lowest": LOWEST_COUNT, "highest": HIGHEST_COUNT}
        for name, wanted in counts.items():
            if type(value[name]) is not int or value[name] != wanted:
                raise SpecError(
                    f"preprocessing.{name}: found {value[name]!r}, this version can do {wanted} only"
                )
        permutation = value["permutation"]
        if (
            not isinstance(permutation, list)
            or any(type(k) is not int for k in permutation)
            or sorted(permutation) != list(range(PATCH_COUNT))
        ):
            raise SpecError(f"preprocessing.permutation: expected each of 0..{PATCH_COUNT - 1} exactly once")
        statistics = {name: _three_numbers(value[name], name) for name in ("mean", "std")}
        if any(deviation <= 0 for deviation in statistics["std"]):
            raise SpecError(f"preprocessing.std: found {value['std']}, expected numbers above 0")
        for name, wanted_text in (("colour", "RGB"), ("decoder", "pillow")):
            if value[name] != wanted_text:
                raise SpecError(
                    f"preprocessing.{name}: found {value[name]!r}, this version can do {wanted_text!r} only"
                )
        return cls(permutation=tuple(permutation), mean=statistics["mean"], std=statistics["std"])


def _three_numbers(value: object, name: str) -> tuple[float, ...]:
    if (
        not isinstance(value, list)
        or len(value) != 3
        or any(isinstance(v, bool) or not isinstance(v, (int, float)) or not abs(v) < 1e6 for v in value)
    ):
        raise SpecError(f"preprocessing.{name}: found {value!r}, expected three finite numbers")
    return tuple(float(v) for v in value)
