"""Memory of a tree of processes, sampled: what a machine needs while all of them run."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

_PERIOD_SECONDS = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class TreeMemory:
    """Samples the summed resident memory of all descendants of this process. Use as a context manager.

    Shared pages count once for each process that maps them, so the sum is never too low but between samples;
    ``largest_process`` is the kernel's own high-water mark and misses nothing.

    Attributes:
        samples: (seconds on the monotonic clock, bytes), in order.
        largest_process: bytes of the process that was largest at any time.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self.largest_process = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def peak(self, start: float = float("-inf"), end: float = float("inf")) -> int:
        """Returns the most bytes in a span of the monotonic clock, 0 if no sample fell into it."""
        return max((size for when, size in self.samples if start <= when <= end), default=0)

    def _run(self) -> None:
        while not self._end.wait(_PERIOD_SECONDS):
            sizes = [_memory(process) for process in descendants(os.getpid())]
            self.samples.append((time.monotonic(), sum(now for now, _most in sizes)))
            self.largest_process = max([self.largest_process, *(most for _now, most in sizes)])


def descendants(root: int) -> list[int]:
    """Returns the processes below one, children of children included."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := _parent(int(name))) is not None:
            parents[int(name)] = parent
    found, known = [], {root}
    while new := [process for process, parent in parents.items() if parent in known and process not in known]:
        found += new
        known.update(new)
    return found


def _parent(process: int) -> int | None:
    try:
        # The second field is the program's name, which may hold spaces and brackets.
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _memory(process: int) -> tuple[int, int]:
    """Returns the bytes that are resident now, and at most so far; zeros for a process that has ended."""
    try:
        now = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES
        status = Path(f"/proc/{process}/status").read_text()
        most = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    except (OSError, IndexError, ValueError):
        return 0, 0
    return now, most * 1024
