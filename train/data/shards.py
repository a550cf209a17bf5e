"""WebDataset tar shards: where the picture, the label and the caption of each sample lie inside the file.

A shard's headers are walked once and the index is remembered in the user's cache folder; from then on
pictures are read by seeking, so that shards shuffle exactly like folders. Nothing is ever unpacked to disk.

The members whose names agree up to the first dot of their last part are one sample: WebDataset's rule.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from runtime.bundle.verification import SETTLE_NS
from runtime.cache import cache_folder, read_cache_file, write_cache_file
from runtime.errors import DataError, one_line
from runtime.names import printable_name
from runtime.pictures.scan import SUFFIXES

_INDEX_SCHEMA = 1
_INDEX_LIMIT = 1 << 30
_SIDECARS = (".cls", ".json", ".txt")
_BLOCK_BYTES = 1 << 20
SIDECAR_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One sample of a shard.

    Attributes:
        name: the picture's name inside the shard.
        span: its first byte within the shard, and its length in bytes.
        label: 0 real, 1 generated.
        generator: from the sample's JSON, else the folder part of ``name``, else the shard's own name.
        beside: suffix, first byte and length of the sample's other members (``.cls``, ``.json``, ``.txt``).
    """

    name: str
    span: tuple[int, int]
    label: int
    generator: str
    beside: tuple[tuple[str, int, int], ...]


@dataclass
class _Group:
    pictures: list[tuple[str, int, int]] = field(default_factory=list)
    beside: dict[str, tuple[int, int]] = field(default_factory=dict)


def shard_members(path: Path) -> list[Member]:
    """Returns the samples of a shard, in the order of their first members.

    Raises:
        DataError: not an uncompressed tar file, damaged or truncated; it holds links, devices or sparse
            files; a sample has no label, two pictures, or a label without a picture.
    """
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            members = _remembered(path, status)
            if members is None:
                members = _indexed(path, stream, status.st_size)
                # A file that changed just now could change again without its time stamp showing it.
                if time.time_ns() - status.st_mtime_ns > SETTLE_NS:
                    _remember(path, status, members)
    except OSError as err:
        raise DataError(f"{_name(path)}: cannot be read ({err.strerror}); check its permissions") from err
    return members


def read_span(path: Path, span: tuple[int, int]) -> bytes:
    """Returns a part of a shard.

    Raises:
        OSError: the shard cannot be read.
        DataError: it has become shorter than its index says.
    """
    offset, size = span
    with path.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(size)
    if len(content) != size:
        raise DataError(f"{_name(path)}: shorter than when it was indexed; start again with the new file")
    return content


def _indexed(path: Path, stream: IO[bytes], length: int) -> list[Member]:
    groups: dict[str, _Group] = {}
    for name, offset, size in _regular_files(path, stream, length):
        folder, _, last = name.rpartition("/")
        stem, dot, _ = last.partition(".")
        if not stem or not dot:  # hidden, or without a suffix
            continue
        group = groups.setdefault(f"{folder}/{stem}" if folder else stem, _Group())
        if os.path.splitext(last)[1].lower() in SUFFIXES:
            group.pictures.append((name, offset, size))
        elif last[len(stem) :] in _SIDECARS:
            group.beside[last[len(stem) :]] = (offset, size)
    members = [_member(path, stream, stem, group) for stem, group in groups.items()]
    return [member for member in members if member is not None]


def _regular_files(path: Path, stream: IO[bytes], length: int) -> Iterator[tuple[str, int, int]]:
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (info := archive.next()) is not None:
                if info.isdir():
                    continue
                name = info.name.removeprefix("./")
                if not info.isreg() or info.issparse():
                    raise DataError(
                        f"{_name(path)}: {printable_name(name)} is a link, a device or a sparse file, "
                        "expected regular files only; pack the shard again"
                    )
                if info.size < 0 or info.offset_data + info.size > length:
                    raise DataError(
                        f"{_name(path)}: {printable_name(name)} reaches beyond the end of the file, which "
                        f"has {length} bytes; get the shard again"
                    )
                yield name, info.offset_data, info.size
            end = archive.offset
    except DataError:
        raise
    except Exception as err:  # on hostile bytes tarfile raises anything, down to RecursionError
        raise DataError(
            f"{_name(path)}: not an uncompressed tar file, or damaged ({one_line(err, 200)}); get it again"
        ) from err
    # tarfile takes a damaged header for the end, which would drop the rest without a word.
    stream.seek(end)
    while block := stream.read(_BLOCK_BYTES):
        if block.strip(b"\0"):
            raise DataError(f"{_name(path)}: damaged, or more data after its end at byte {end}; get it again")


def _member(path: Path, stream: IO[bytes], stem: str, group: _Group) -> Member | None:
    name = f"{_name(path)}: {printable_name(stem)}"
    content = {}
    for suffix in (".cls", ".json"):
        if suffix in group.beside:
            offset, size = group.beside[suffix]
            if size > SIDECAR_LIMIT:
                raise DataError(f"{name}{suffix} has {size} bytes, expected at most {SIDECAR_LIMIT}")
            stream.seek(offset)
            content[suffix] = stream.read(size)
    fields = _json_object(name, content.get(".json"))
    labels = {fields["label"]} if "label" in fields else set()
    if ".cls" in content:
        labels.add(content[".cls"].decode("ascii", "replace").strip())
    if not group.pictures and not labels:
        return None
    if len(group.pictures) != 1:
        raise DataError(
            f"{name} has {len(group.pictures)} pictures, expected one; names must differ before their first "
            "dot"
        )
    if len({str(label) for label in labels}) != 1 or str(next(iter(labels))) not in ("0", "1"):
        found = " and ".join(sorted(printable_name(str(label))[:40] for label in labels)) or "nothing"
        raise DataError(
            f'{name}: found {found} as its label, expected 0 or 1 in a member {stem}.cls or as "label" in '
            f"{stem}.json"
        )
    picture, offset, size = group.pictures[0]
    generator = str(fields.get("generator") or picture.rpartition("/")[0] or _shard_family(path))
    beside = tuple((suffix, *span) for suffix, span in group.beside.items())
    label = int(next(iter(labels)))
    return Member(picture, (offset, size), label, printable_name(generator), beside)


def _json_object(name: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise DataError(f"{name}.json cannot be read as JSON ({one_line(err)})") from err
    if not isinstance(fields, dict):
        raise DataError(f"{name}.json: found {type(fields).__name__}, expected one JSON object")
    label, generator = fields.get("label", 0), fields.get("generator", "x")
    if type(label) is not int or not isinstance(generator, str):
        raise DataError(f'{name}.json: expected "label" to be 0 or 1, and "generator", if any, to be a text')
    return fields


def _shard_family(path: Path) -> str:
    """``sdxl-000017.tar`` is one of many shards of "sdxl"; ``00017.tar`` belongs to its folder."""
    return re.sub(r"[-_.]?\d+$", "", path.stem) or path.resolve().parent.name


def _index_path(path: Path) -> Path:
    return cache_folder() / "shards" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"


def _remembered(path: Path, status: os.stat_result) -> list[Member] | None:
    content = read_cache_file(_index_path(path), limit=_INDEX_LIMIT)
    if content is None:
        return None
    try:
        index = json.loads(content)
        if index["of"] != [_INDEX_SCHEMA, status.st_size, status.st_mtime_ns]:
            return None
        return [
            Member(name, (span[0], span[1]), label, generator, tuple((b[0], b[1], b[2]) for b in beside))
            for name, span, label, generator, beside in index["members"]
        ]
    except (ValueError, LookupError, TypeError):  # not ours, or half of it: index the shard again
        return None


def _remember(path: Path, status: os.stat_result, members: list[Member]) -> None:
    index = {
        "of": [_INDEX_SCHEMA, status.st_size, status.st_mtime_ns],
        "members": [[m.name, m.span, m.label, m.generator, m.beside] for m in members],
    }
    write_cache_file(_index_path(path), json.dumps(index).encode())


def _name(path: Path) -> str:
    return printable_name(str(path))
