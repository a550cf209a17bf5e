"""Pictures as mosaics: which files below a folder are pictures, and the mosaics of one picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import ImageError
from runtime.pictures.scan import SUFFIXES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.decode import DecodeLimits, Source
    from runtime.decode.budget import PixelBudget


class PictureMosaics(NamedTuple):
    """One picture, ready for the graph.

    Attributes:
        mosaics: uint8 ``[views, 224, 224, 3]``.
        decode_ms: time until its pixels could be read, without the wait for room in a budget.
        select_ms: time for choosing and laying out its patches.
    """

    mosaics: NDArray[np.uint8]
    decode_ms: float
    select_ms: float


def picture_files(folder: Path) -> list[Path]:
    """Returns the regular files below a folder whose suffix says that they are pictures, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def mosaic_from_picture(
    source: Source,
    *,
    name: str | None = None,
    permutation: Sequence[int] | None = None,
    views: int = 1,
    limits: DecodeLimits | None = None,
    budget: PixelBudget | None = None,
) -> PictureMosaics:
    """Decodes one picture and selects its patches, without ever holding a large one twice.

    A JPEG of 100 megapixels takes the 4 bytes a pixel of Pillow's own picture and little more.

    Args:
        source: as ``decode_image`` takes it.
        name: what messages call it; None for the path, or for what it is.
        permutation: that of view 0, each of 0..48 once; None for the literal one of inference.
        views: how many mosaics are made of it, see ``runtime.patches.views``.
        limits: what is accepted; None for the default limits.
        budget: where its pixels have to find room until the patches are cut; None for no bound.

    Raises:
        ImageError: it cannot be read, is over a limit or has a side under 32 pixels; one line that names it.
        SpecError: ``permutation`` is not one.
        UsageError: ``views`` is out of range.
    """
    import numpy as np

    from runtime.decode import read_pixels, source_name
    from runtime.patches.pixels import patch_grid
    from runtime.patches.selection import mosaic_from_patches, selected_patches
    from runtime.patches.views import view_permutations
    from runtime.spec import PERMUTATION

    orders = view_permutations(views, PERMUTATION if permutation is None else permutation)
    name = name or source_name(source)
    with nullcontext() if budget is None else budget.hold() as hold:
        started = time.perf_counter()
        pixels = read_pixels(source, name=name, limits=limits, hold=hold)
        decoded = time.perf_counter()
        try:
            patch_grid(pixels)
        except ImageError as err:
            raise ImageError(f"{name}: {err}") from err
        patches = selected_patches(pixels)
        del pixels  # before others are told that there is room
    mosaics = np.stack([mosaic_from_patches(patches, order) for order in orders])
    waited_ms = 0.0 if hold is None else hold.waited_ms
    return PictureMosaics(
        mosaics, (decoded - started) * 1e3 - waited_ms, (time.perf_counter() - decoded) * 1e3
    )


def mosaic_from_file(path: Path, **options: Any) -> NDArray[np.uint8]:
    """Decodes one file and returns its mosaic, uint8 ``[224, 224, 3]``, with inference's permutation.

    Args:
        path: the file.
        **options: ``max_pixels``, ``max_side`` and ``allow_truncated``, as ``decode_image`` takes them.

    Raises:
        ImageError: the file cannot be read or is too small; the message names it.
    """
    from runtime.decode import DecodeLimits

    mosaic: NDArray[np.uint8] = mosaic_from_picture(path, limits=DecodeLimits(**options)).mosaics[0]
    return mosaic
