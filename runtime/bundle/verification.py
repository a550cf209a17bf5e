"""Checks a bundle's files against their SHA-256, in threads; the user cache remembers what passed.

It proves integrity, not origin: whoever can write the bundle can write its manifest too.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import deque
from io import FileIO
from pathlib import Path

from runtime.bundle.manifest import FileEntry, canonical_json
from runtime.cache import read_cache_file, write_cache_file
from runtime.errors import ManifestError, UsageError
from runtime.machine import usable_cpus

MODES = ("full", "cached", "off")
# After each block the thread waits for the interpreter, up to 5 ms while another one runs Python code: beside
# a busy thread, 352 MB took 1000 ms in blocks of 1 MiB and 840 ms in these; alone 290 ms either way.
_BLOCK_BYTES = 8 << 20
# As many as a bundle has large files: FP32 and FP16 weights, an engine or two.
_MAX_THREADS = 4
# Clocks of file systems tick coarsely (Linux 4 to 10 ms, FAT and old NFS up to 2 s): a file that changed this
# recently could change again without its time stamps showing it, so it is checked but not yet remembered.
SETTLE_NS = 2_000_000_000


class Verification:
    """The hashing of one bundle, running in the background from the moment it is made.

    Args:
        folder: the bundle's folder.
        files: what its manifest lists.
        mode: "full" hashes everything; "cached" skips files that passed before and have not changed since, by
            device, inode, size, modification time, change time and expected hash; "off" checks nothing.
        cache: the user's cache folder.

    Raises:
        UsageError: ``mode`` is something else.
    """

    def __init__(self, folder: Path, files: dict[str, FileEntry], mode: str, cache: Path) -> None:
        if mode not in MODES:
            raise UsageError(f"verify: found {mode!r}, expected one of {', '.join(MODES)}")
        self._folder = folder
        self._files = files
        self._mode = mode
        self._cache = cache
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._hashed: list[str] = []
        # Small files first: damage in a manifest's neighbour shows before gigabytes of weights are read.
        self._left = deque(sorted(files, key=lambda name: files[name].size))
        count = min(_MAX_THREADS, usable_cpus()) if self.is_on else 0
        self._threads = [
            threading.Thread(target=self._work, name=f"dgsnet-verify-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def hashed(self) -> tuple[str, ...]:
        """Names whose bytes were read and hashed, as opposed to remembered; complete after ``join``."""
        return tuple(self._hashed)

    @property
    def is_on(self) -> bool:
        """Whether anything is checked at all."""
        return self._mode != "off"

    def join(self) -> None:
        """Waits for the end.

        Raises:
            ManifestError: a file differs from its hash, cannot be read, or changed while it was read.
        """
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def cancel(self) -> None:
        """Stops hashing soon and forgets the outcome."""
        self._stop.set()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    name = self._left.popleft()
                except IndexError:
                    return
                self._check(name, self._files[name])
        except BaseException as err:  # handed over to whoever joins
            self._failure = err
            self._stop.set()

    def _check(self, name: str, entry: FileEntry) -> None:
        path = self._folder / name
        try:
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb", buffering=0) as stream:
                before = os.fstat(stream.fileno())
                stamp = self._stamp(before, entry)
                if self._mode == "cached" and read_cache_file(stamp) is not None:
                    return
                found = self._hash(stream, entry.size)
                after = os.fstat(stream.fileno())
        except OSError as err:
            raise ManifestError(f"{path}: cannot be read ({err.strerror}); check its permissions") from err
        if found is None:
            return
        self._hashed.append(name)
        if found != entry.sha256:
            raise ManifestError(
                f"{path}: its content has SHA-256 {found[:12]}..., the manifest says {entry.sha256[:12]}...; "
                "the file was changed or damaged: get the bundle again or rebuild it"
            )
        if self._stamp(after, entry) != stamp:
            raise ManifestError(f"{path}: it changed while it was being read; open the bundle again")
        if time.time_ns() - max(after.st_ctime_ns, after.st_mtime_ns) > SETTLE_NS:
            write_cache_file(stamp, json.dumps({"file": name, "sha256": found}).encode())

    def _hash(self, stream: FileIO, size: int) -> str | None:
        buffer = memoryview(bytearray(min(_BLOCK_BYTES, max(size, 1))))
        digest = hashlib.sha256()
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            if self._stop.is_set():
                return None
        return digest.hexdigest()

    def _stamp(self, status: os.stat_result, entry: FileEntry) -> Path:
        identity = [
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            entry.sha256,
        ]
        return self._cache / "verified" / hashlib.sha256(canonical_json(identity)).hexdigest()
