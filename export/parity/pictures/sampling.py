"""A part of the pictures that stands for all: each generator and label by its share, always the same ones.

A picture's turn comes from a hash of its name below the data folder, so that neither the order in which a
folder lists its files nor where it lies matters, and a few new files change a few of those taken.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from export.parity.pictures.data_set import Picture, pictures_below
from export.parity.pictures.reading import SEED, Reading, Sample
from runtime.names import name_bytes

_Group = tuple[str, int]


def pictures_to_read(folder: Path, reading: Reading) -> tuple[list[Picture], Sample | None]:
    """Returns the pictures below a folder that are asked for, sorted by path, and that they are a part.

    Raises:
        DataError: none there, or the folder is missing.
    """
    pictures = pictures_below(folder)
    most = reading.max_pictures
    if most is None or most >= len(pictures):
        return pictures, None
    return sampled(pictures, most), Sample(most, len(pictures))


def sampled(pictures: Sequence[Picture], count: int, seed: int = SEED) -> list[Picture]:
    """Returns ``count`` of the pictures in the order that they stand in; all where there are no more.

    Every pair of generator and label gets its share of the count, rounded, and at least one picture where
    the count is large enough for that.

    Args:
        pictures: to choose from, names distinct.
        count: how many, 1 or more.
        seed: another one chooses other pictures.
    """
    if count >= len(pictures):
        return list(pictures)
    groups: defaultdict[_Group, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.generator, picture.label].append(picture)
    shares = _shares({key: len(members) for key, members in groups.items()}, count)
    taken: set[str] = set()
    for key, members in groups.items():
        by_turn = sorted(members, key=lambda picture: _turn(picture, seed))
        taken.update(picture.name for picture in by_turn[: shares[key]])
    return [picture for picture in pictures if picture.name in taken]


def _turn(picture: Picture, seed: int) -> bytes:
    return hashlib.sha256(b"%d/" % seed + name_bytes(picture.name)).digest()


def _shares(sizes: dict[_Group, int], count: int) -> dict[_Group, int]:
    """Returns how many each group gives, by Webster's method: the next goes where most is left over."""
    # One each first, while there are enough: a rare generator shall not vanish.
    shares = {key: int(count >= len(sizes)) for key in sizes}
    waiting = [(-size / (2 * shares[key] + 1), key) for key, size in sizes.items() if size > shares[key]]
    heapq.heapify(waiting)
    for _ in range(count - sum(shares.values())):
        _, key = heapq.heappop(waiting)
        shares[key] += 1
        if shares[key] < sizes[key]:
            heapq.heappush(waiting, (-sizes[key] / (2 * shares[key] + 1), key))
    return shares
