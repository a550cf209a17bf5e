"""Which libraries a shared object asks the loader for, read from its bytes: it might not load here."""

from __future__ import annotations

import struct
from pathlib import Path

_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS = 1, 5
_MOST_ENTRIES = 4096


def needed_libraries(path: Path) -> list[str]:
    """Returns the DT_NEEDED names of a 64-bit little-endian ELF file, in its order.

    Raises:
        ValueError: it is no such file, or it is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:

        def read(offset: int, form: str) -> tuple[int, ...]:
            stream.seek(offset)
            return struct.unpack(form, stream.read(struct.calcsize(form)))

        if stream.read(6) != b"\x7fELF\x02\x01":
            raise ValueError(f"{path.name}: found no 64-bit little-endian ELF file")
        try:
            (table,) = read(32, "<Q")
            entry_size, count = read(54, "<HH")
            headers = [read(table + k * entry_size, "<IIQQQQ") for k in range(count)]
            loads = [(h[3], h[2], h[5]) for h in headers if h[0] == _LOAD]
            dynamic = next((h[2] for h in headers if h[0] == _DYNAMIC), None)
            names, strings = [], 0
            for k in range(_MOST_ENTRIES if dynamic is not None else 0):
                tag, value = read((dynamic or 0) + 16 * k, "<qQ")
                if tag == 0:
                    break
                if tag == _NEEDED:
                    names.append(value)
                elif tag == _STRINGS:
                    strings = _file_offset(value, loads)
            return [_text(stream.seek(strings + name) and stream.read(256)) for name in names]
        except (struct.error, StopIteration) as err:
            raise ValueError(f"{path.name}: found a damaged ELF file") from err


def _file_offset(address: int, loads: list[tuple[int, int, int]]) -> int:
    return next(offset + address - start for start, offset, size in loads if start <= address < start + size)


def _text(found: bytes | int) -> str:
    return found.split(b"\0")[0].decode("utf-8", "replace") if isinstance(found, bytes) else ""
