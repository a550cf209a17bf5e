"""What the runtime asks of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import runtime

_PROGRAM = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from runtime.detector import Detector
from runtime.machine import usable_cpus
with Detector.open(sys.argv[1]) as detector:
    print(usable_cpus(), detector._stages.prepare_pool._max_workers)
    allowed = set()
    for thread in os.listdir("/proc/self/task"):
        allowed |= os.sched_getaffinity(int(thread))
    print(len(allowed))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU is all there is")
def test_detector__stays_on_the_cpus_that_the_process_may_use(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(bundle)],
        cwd=Path(runtime.__file__).parent.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["1", "1", "1"], "")
