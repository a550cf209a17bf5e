"""From one item to the mosaics that the engine takes: decoding and patch selection, timed, never raising."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.decode import DecodeLimits
from runtime.decode.budget import PixelBudget
from runtime.detection import Detection, ItemError
from runtime.errors import DgsNetError, ImageReadError, kind_and_line
from runtime.names import printable_name
from runtime.patches.views import view_permutations
from runtime.pictures.mosaics import mosaic_from_picture
from runtime.spec import PERMUTATION

if TYPE_CHECKING:
    from runtime.decode import Source

logger = logging.getLogger("dgsnet.preparation")


@dataclass(frozen=True)
class PreparationOptions:
    """How an item becomes mosaics.

    Attributes:
        permutation: cell k of the mosaic of view 0 shows selected patch ``permutation[k]``.
        views: mosaics per picture, whose logits are averaged.
        limits: which pictures are accepted.
        budget: bound on the pixels that all threads together hold; None for none.

    Raises:
        UsageError: ``views`` is out of range.
    """

    permutation: tuple[int, ...] = PERMUTATION
    views: int = 1
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    budget: PixelBudget | None = None

    def __post_init__(self) -> None:
        view_permutations(self.views, self.permutation)


@dataclass(frozen=True)
class Prepared:
    """An item that is ready for the engine.

    Attributes:
        path: the name that was given, None for bytes, arrays and open files.
        mosaics: uint8 ``[views, 224, 224, 3]``.
        decode_ms: time spent on decoding.
        select_ms: time spent on selecting patches.
    """

    path: str | None
    mosaics: NDArray[np.uint8]
    decode_ms: float
    select_ms: float


def load_modules() -> None:
    """Imports what ``prepare`` would import when its first picture comes, in one of its threads.

    A fork meanwhile leaves the child with modules that are never complete: whatever it decodes then hangs or
    fails, also with a detector of its own.
    """
    from PIL import Image

    import runtime.decode.reading
    import runtime.patches.selection  # noqa: F401

    Image.preinit()


def prepare(item: Source, options: PreparationOptions) -> Prepared | Detection:
    """Returns an item's mosaics, or the detection that says why there are none; raises nothing."""
    path = None
    try:
        path = os.fsdecode(item) if isinstance(item, (str, os.PathLike)) else None
        mosaics, decode_ms, select_ms = mosaic_from_picture(
            item,
            permutation=options.permutation,
            views=options.views,
            limits=options.limits,
            budget=options.budget,
        )
    except DgsNetError as err:
        return Detection.failed(path, err)
    except MemoryError:
        name = printable_name(path) if path is not None else "item"
        return Detection.failed(path, ImageReadError(f"{name}: not enough memory to decode it"))
    except Exception as err:  # a caller's own file object or path type may raise anything
        logger.debug("unexpected error while preparing an item", exc_info=True)
        reason = kind_and_line(err)
        return Detection(
            path=path, error=ItemError("internal", f"{printable_name(path or 'item')}: {reason}")
        )
    return Prepared(path, mosaics, decode_ms, select_ms)
