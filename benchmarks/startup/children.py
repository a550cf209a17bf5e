"""Child processes, measured from outside: wall time, CPU time and peak memory.

Linux counts what a process held before it became another program to the other program's peak, so a small
launcher starts each child, and not this process, which may hold PyTorch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import GateFailedError

_LAUNCHER = """
import json, os, sys, time
null = os.open(os.devnull, os.O_RDWR)
started = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
_, status, usage = os.wait4(child, 0)
print(json.dumps({"code": os.waitstatus_to_exitcode(status), "wall": time.perf_counter() - started,
                  "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss}))
"""
# ru_maxrss is in kilobytes on Linux and in bytes on macOS: getrusage(2).
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Cost:
    """What one child took: seconds by the clock, seconds of CPU, and the most memory it held, in bytes."""

    wall: float
    cpu: float
    peak_bytes: int


def run_python(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Runs this Python with arguments, its standard output thrown away.

    Raises:
        GateFailedError: the child failed; with the end of what it wrote to standard error.
    """
    command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, sys.executable, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout) if done.returncode == 0 else {"code": done.returncode}
    if found["code"]:
        raise GateFailedError(f"{arguments[0]}: exit code {found['code']}: {done.stderr.strip()[-300:]}")
    return Cost(found["wall"], found["cpu"], found["peak"] * _PEAK_UNIT)
