"""The file that ``predict --output`` writes: one verdict a line, durable as it grows, resumable after a kill.

A line is the object of ``Detection.to_json`` with three more keys: ``size`` (bytes) and ``mtime_ns`` of the
file when it was read, null for what is no file, and ``bundle``, the first 16 digits of the bundle's digest.
A picture that changed, or was tried again, has several lines: the last one counts.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from runtime.detection import Detection
from runtime.errors import DataError, ImageError, UsageError
from runtime.names import name_bytes, printable_name

# A kill loses nothing that was written; a power cut loses at most what was judged in this time.
_SYNC_SECONDS = 1.0
_DIGEST_BYTES = 16
_BUNDLE_DIGITS = 16
# What stays true of a file as long as the file is the same; any other error is tried again.
_LASTING_ERROR = ImageError.code
# How every line begins, and more bytes than any has.
_START = b'{"schema": '
_MAX_LINE_BYTES = 1 << 26


class FileState(NamedTuple):
    """Size in bytes and modification time of a file, both None for what is no regular file."""

    size: int | None = None
    mtime_ns: int | None = None


def file_state(path: str) -> FileState:
    """Returns the state of a file now."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return FileState()
    return FileState(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else FileState()


class HeldResults:
    """What a results file holds already, as one 16-byte digest per line."""

    def __init__(self, verdicts: bytes = b"", errors: bytes = b"") -> None:
        self._verdicts = np.sort(np.frombuffer(verdicts, dtype=f"V{_DIGEST_BYTES}").view(f"S{_DIGEST_BYTES}"))
        self._errors = np.sort(np.frombuffer(errors, dtype=f"V{_DIGEST_BYTES}").view(f"S{_DIGEST_BYTES}"))

    def holds_verdict(self, path: str, state: FileState) -> bool:
        """Says whether there is a verdict on this very state of the file."""
        return _is_among(self._verdicts, _identity(name_bytes(path), state))

    def holds_error(self, path: str, state: FileState) -> bool:
        """Says whether this very state of the file was found unreadable."""
        return _is_among(self._errors, _identity(name_bytes(path), state))


class ResultsFile:
    """A results file opened for appending. Use as a context manager. One process at a time writes to it.

    Args:
        path: the file; its folder must exist.
        bundle_digest: of the bundle that judges.
        views: how many arrangements of the patches it averages.
        resume: whether to continue a file that exists.
        overwrite: whether to replace a file that exists.

    Attributes:
        held: what the file held when it was opened.

    Raises:
        UsageError: the file exists and neither was asked for, it is no regular file, another process writes
            to it, or it was written with another bundle or another number of views.
        DataError: a line of it is no result.
        OSError: it cannot be written.
    """

    def __init__(
        self, path: Path, bundle_digest: str, *, views: int = 1, resume: bool, overwrite: bool
    ) -> None:
        self._path = path
        self._bundle = bundle_digest[:_BUNDLE_DIGITS]
        self._views = views
        self._stream: IO[bytes] = open(  # noqa: SIM115 - closed by close()
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0
        )
        try:
            if not stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode):
                raise UsageError(
                    f"{_name(path)}: found a device, pipe or socket, expected a regular file; for a pipe "
                    "leave out --output and take --json"
                )
            self._lock()
            if overwrite:
                self._stream.truncate(0)
            elif not resume and self._stream.seek(0, os.SEEK_END):
                raise UsageError(
                    f"{_name(path)}: exists already; add --resume to continue it or --overwrite to replace it"
                )
            self.held = self._read()
        except BaseException:
            self._stream.close()
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def append(self, detection: Detection, state: FileState) -> None:
        """Writes one line with one system call, so that a kill leaves whole lines or a torn last one.

        Raises:
            OSError: the disk is full or gone.
        """
        extra = {"size": state.size, "mtime_ns": state.mtime_ns, "bundle": self._bundle}
        line = json.dumps(detection.to_json() | extra, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
            self._sync_now_and_then()
        except OSError as err:
            raise OSError(err.errno, err.strerror, str(self._path)) from err

    def _sync_now_and_then(self) -> None:
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes the file; harmless when called twice."""
        if not self._stream.closed:
            os.fsync(self._stream.fileno())
            self._stream.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise UsageError(
                f"{_name(self._path)}: another process writes to it; wait, or give another --output"
            ) from err

    def _read(self) -> HeldResults:
        verdicts, errors = bytearray(), bytearray()
        end = 0
        self._stream.seek(0)
        # A second reader with a buffer: reading line by line from a raw stream takes a call a byte.
        with open(self._stream.fileno(), "rb", closefd=False) as reader:
            # By length, not by iteration: any file may be named here, even one without a line break.
            lines = iter(lambda: reader.readline(_MAX_LINE_BYTES), b"")
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    self._check_torn(line, number)
                    break  # it is cut off below and its picture judged again
                end += len(line)
                row = self._row(line, number)
                if row["bundle"] != self._bundle:
                    found = str(row["bundle"])[:_BUNDLE_DIGITS]
                    raise UsageError(
                        f"{_name(self._path)}: line {number} was judged by bundle {found}, this one is "
                        f"{self._bundle}; give another --output"
                    )
                if row["error"] is None and row["views"] != self._views:
                    raise UsageError(
                        f"{_name(self._path)}: line {number} averages {row['views']!s:.20} views, this run "
                        f"{self._views}; give the same --views, or another --output"
                    )
                state = FileState(row["size"], row["mtime_ns"])
                if state.size is None or row["path"] is None:
                    continue
                if row["error"] is None:
                    verdicts += _identity(_row_name(row), state)
                elif row["error"]["code"] == _LASTING_ERROR:
                    errors += _identity(_row_name(row), state)
        self._stream.truncate(end)
        self._stream.seek(end)
        return HeldResults(bytes(verdicts), bytes(errors))

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            _row_name(row)
            if not isinstance(row["error"], (dict, type(None))) or {
                "size",
                "mtime_ns",
                "bundle",
                "views",
            } - set(row):
                raise ValueError("a key is missing or of another type")
            if row["error"] is not None:
                row["error"]["code"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as err:
            raise self._foreign(number) from err
        return dict(row)

    def _check_torn(self, line: bytes, number: int) -> None:
        """Refuses a last line that no kill can have left: cutting it off would destroy somebody's file."""
        written = line.rstrip(b"\0")  # a power cut leaves zeros where the rest was to go
        if len(line) >= _MAX_LINE_BYTES or not (written.startswith(_START) or _START.startswith(written)):
            raise self._foreign(number)

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"{_name(self._path)}: line {number} is no result of predict --output; choose another file"
        )


def _row_name(row: dict[str, Any]) -> bytes:
    if "path_base64" in row:
        return base64.b64decode(row["path_base64"], validate=True)
    return b"" if row["path"] is None else name_bytes(row["path"])


def _identity(name: bytes, state: FileState) -> bytes:
    text = f"{state.size} {state.mtime_ns} ".encode() + name
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()


def _is_among(digests: np.ndarray[Any, Any], digest: bytes) -> bool:
    wanted = np.array([digest], dtype=digests.dtype)
    place = int(np.searchsorted(digests, wanted)[0])
    return place < len(digests) and bool(digests[place] == wanted[0])


def _name(path: Path) -> str:
    return printable_name(str(path))
