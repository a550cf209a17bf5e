"""The most host memory that this process holds during a stretch of work."""

from __future__ import annotations

import re
from pathlib import Path

_STATUS = Path("/proc/self/status")
_LINE = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB", re.MULTILINE)


class PeakMemory:
    """Watches from its creation on; call ``sample`` now and then.

    The kernel's high-water mark is exact, but it also counts what came before. Setting it back would take it
    from whoever measures this process from outside, so samples stand in where the work stayed below it.
    """

    def __init__(self) -> None:
        self._before = _memory("VmHWM")
        self._sampled = 0
        self.sample()

    def sample(self) -> None:
        """Reads the resident memory of this moment."""
        self._sampled = max(self._sampled, _memory("VmRSS"))

    def peak_bytes(self) -> int | None:
        """Returns the peak in bytes, None where the system does not say."""
        mark = _memory("VmHWM")
        return (mark if mark > self._before else self._sampled) or None


def _memory(name: str) -> int:
    try:
        text = _STATUS.read_text(encoding="ascii")
    except OSError:
        return 0
    return {key: int(value) * 1024 for key, value in _LINE.findall(text)}.get(name, 0)
