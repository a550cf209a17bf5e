"""What one picture file is, without its label: codec, size and hashes; and the memory of it between runs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle.verification import SETTLE_NS
from runtime.cache import cache_folder, read_cache_file, write_cache_file
from runtime.decode import FORMATS, decode_image
from runtime.errors import ImageError, one_line
from runtime.spec import PATCH_SIDE
from train.data.layout import Sample

_SCHEMA = 1
_MEMORY_LIMIT = 1 << 31
_BLOCK_BYTES = 1 << 20
# A photograph with a preview inside is still a JPEG to whoever decodes it.
_SAME_CODEC = {"MPO": "JPEG"}


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """One readable picture.

    Attributes:
        codec: Pillow's name of the format.
        width: in pixels, as stored: before an EXIF orientation is applied.
        height: likewise.
        file_hash: SHA-256 of the file's bytes.
        pixel_hash: SHA-256 of size and decoded RGB pixels; None where only the header was read.
    """

    codec: str
    width: int
    height: int
    file_hash: bytes
    pixel_hash: bytes | None


def picture_facts(sample: Sample, *, is_full: bool) -> PictureFacts:
    """Reads one picture.

    Args:
        sample: the picture.
        is_full: decode it, by the runtime's own decoder, which alone finds truncated data; else read its
            header and hash its bytes.

    Raises:
        ImageError: it cannot be read, or is too small for a patch.
    """
    source = sample.source()
    # Reading a pipe would wait for a writer that may never come.
    if isinstance(source, Path) and source.exists() and not stat.S_ISREG(source.stat().st_mode):
        raise ImageError("found something that is no regular file, expected a picture")
    pixel_hash = None
    if is_full:
        pixels = decode_image(source)
        digest = hashlib.sha256(str(pixels.shape).encode())
        digest.update(pixels.data)
        pixel_hash = digest.digest()
    codec, width, height = _header(source)
    if min(width, height) < PATCH_SIDE:
        raise ImageError(
            f"found {width} x {height} pixels, expected at least {PATCH_SIDE} on each side; "
            "use a larger original, not an enlarged copy"
        )
    return PictureFacts(codec, width, height, _file_hash(source), pixel_hash)


class FactsMemory:
    """What earlier runs found in the files of one folder, or in the members of one shard.

    A record counts while the file's length and modification time (of a shard: the member's place too) are
    what they were. It lies in the user's cache folder and may be deleted at any time.

    Args:
        place: the folder or the shard.
    """

    def __init__(self, place: Path) -> None:
        name = hashlib.sha256(os.fsencode(os.path.abspath(place))).hexdigest()
        self._path = cache_folder() / "pictures" / f"{name}.json"
        self._records = _records(self._path)
        self._is_changed = False

    @staticmethod
    def place_of(sample: Sample) -> Path:
        """Returns the folder or the shard whose memory holds the sample."""
        return sample.path.parent if sample.span is None else sample.path

    def get(self, sample: Sample, status: os.stat_result, *, is_full: bool) -> PictureFacts | None:
        """Returns what is remembered and still holds, None where the picture must be read.

        Args:
            sample: the picture.
            status: of its file, as it is now.
            is_full: whether the hash of the pixels is needed.
        """
        record = self._records.get(_record_name(sample))
        try:
            if record is None or record[:2] != _identity(sample, status):
                return None
            codec, width, height, file_hash, pixel_hash = record[2:]
            if pixel_hash is None and is_full:
                return None
            pixels = bytes.fromhex(pixel_hash) if is_full else None
            return PictureFacts(str(codec), int(width), int(height), bytes.fromhex(file_hash), pixels)
        except (ValueError, TypeError):  # not what we wrote: read the picture again
            return None

    def put(self, sample: Sample, status: os.stat_result, facts: PictureFacts) -> None:
        """Remembers a picture, as its file was before it was read."""
        # A file that changed just now could change again without its time stamp showing it.
        if time.time_ns() - status.st_mtime_ns <= SETTLE_NS:
            return
        pixel_hash = None if facts.pixel_hash is None else facts.pixel_hash.hex()
        self._records[_record_name(sample)] = [
            *_identity(sample, status), facts.codec, facts.width, facts.height,
            facts.file_hash.hex(), pixel_hash,
        ]  # fmt: skip
        self._is_changed = True

    def save(self) -> None:
        """Writes what was put, all of it or nothing."""
        if self._is_changed:
            content = json.dumps({"schema": _SCHEMA, "pictures": self._records}, separators=(",", ":"))
            write_cache_file(self._path, content.encode())
            self._is_changed = False


def _records(path: Path) -> dict[str, list[Any]]:
    content = read_cache_file(path, limit=_MEMORY_LIMIT)
    try:
        memory = json.loads(content) if content is not None else {}
        if isinstance(memory, dict) and memory.get("schema") == _SCHEMA:
            return dict(memory["pictures"])
    except (ValueError, KeyError, TypeError):  # not what we wrote
        pass
    return {}


def _record_name(sample: Sample) -> str:
    return sample.path.name if sample.span is None else str(sample.span[0])


def _identity(sample: Sample, status: os.stat_result) -> list[int]:
    return [status.st_size if sample.span is None else sample.span[1], status.st_mtime_ns]


def _header(source: Path | bytes) -> tuple[str, int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            codec = _SAME_CODEC.get(str(image.format), str(image.format))
            width, height = image.size
    except Exception as err:  # on hostile bytes format readers raise anything
        raise ImageError(f"its header cannot be read ({one_line(err, 200)})") from err
    if codec not in FORMATS:
        raise ImageError(f"found {codec}, expected one of {', '.join(FORMATS)}")
    return codec, width, height


def _file_hash(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    digest = hashlib.sha256()
    try:
        with source.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as err:
        raise ImageError(f"cannot be read ({err.strerror}); check its permissions") from err
    return digest.digest()
