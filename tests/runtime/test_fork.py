"""A child that is forked from a process with an open bundle: told at once, and able to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import runtime

ROOT = Path(runtime.__file__).parent.parent

# The parent judged before the fork, so that every thread had started.
_CHILDREN = {
    "predict": "detector.predict([picture])",
    "the rest of a stream": "next(begun); next(begun)",
    "a stream that never began": "next(made)",
    "a submitted picture": "detector.submit(picture).result()",
    "one picture": "detector.prepare(picture)",
    "the engine": "detector.backend.run(mosaics)",
}
_PROGRAM = """
import os, sys, warnings
import numpy as np
from runtime.detector import Detector
from runtime.errors import UsageError

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forked with threads, which is the point
bundle, picture = sys.argv[1:]
detector = Detector.open(bundle, threads=4)
mosaics = np.zeros((2, 224, 224, 3), np.uint8)
before = detector.predict([picture])[0].logit
begun, made = detector.stream([picture] * 40), detector.stream([picture])
next(begun)
child = os.fork()
if child == 0:
    try:
        {work}
        print("no error")
    except UsageError as err:
        print(err)
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
after = [d.logit for d in [*begun, *made, *detector.predict([picture])]]
assert len(after) == 41 and max(abs(logit - before) for logit in after) < 1e-4, after
detector.close()
print("parent closed")
"""


def run_program(program: str, *arguments: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_detector__judges_without_another_import(bundle: Path, pictures: list[Path]) -> None:
    """A child that is forked while a thread imports can never import, nor use, the same modules."""
    program = (
        "import sys\nfrom runtime.detector import Detector\ndetector = Detector.open(sys.argv[1])\n"
        "before = set(sys.modules)\nassert detector.predict([sys.argv[2]])[0].label\n"
        "print(sorted(set(sys.modules) - before))"
    )
    assert run_program(program, bundle, pictures[0]) == ["[]"]


@pytest.mark.parametrize("work", _CHILDREN.values(), ids=list(_CHILDREN))
def test_detector__in_a_fork_refuses_at_once(work: str, bundle: Path, pictures: list[Path]) -> None:
    said, closed = run_program(_PROGRAM.format(work=work), bundle, pictures[0])
    assert "was opened in another process" in said
    assert "open the bundle after the fork" in said
    assert closed == "parent closed"


# Nothing but the name holds the detector here: without care its session is freed in the child.
_ENDING = """
import gc, os, sys, warnings
from runtime.detector import Detector

warnings.simplefilter("ignore", DeprecationWarning)
bundle, picture = sys.argv[1:]
detector = Detector.open(bundle, threads=4)
detector.predict([picture])
child = os.fork()
if child == 0:
    {ending}
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
detector.close()
print("parent closed")
"""


@pytest.mark.parametrize(
    "ending",
    ["detector.close(); detector.close()", "del detector; gc.collect()", "pass"],
    ids=["close", "collection", "exit"],
)
def test_detector__in_a_fork_ends_without_waiting(ending: str, bundle: Path, pictures: list[Path]) -> None:
    assert run_program(_ENDING.format(ending=ending), bundle, pictures[0]) == ["parent closed"]


def test_detector__opened_in_a_fork_judges_there(bundle: Path, pictures: list[Path]) -> None:
    opened = (
        "inner = Detector.open(bundle); assert inner.predict([picture])[0].logit == before; inner.close()"
    )
    said, closed = run_program(_PROGRAM.format(work=opened), bundle, pictures[0])
    assert (said, closed) == ("no error", "parent closed")


_POOL = """
import multiprocessing, sys, warnings
from runtime.detector import Detector
from runtime.errors import UsageError

warnings.simplefilter("ignore", DeprecationWarning)
bundle, picture = sys.argv[1:]
detector = Detector.open(bundle)
detector.predict([picture])

def judge(path):
    return detector.predict([path])[0].label

with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        pool.map(judge, [picture] * 4)
    except UsageError as err:
        print(err)
    pool.close()
    pool.join()
"""


def test_detector__shared_with_a_fork_pool_is_an_error_of_the_parent(
    bundle: Path, pictures: list[Path]
) -> None:
    (said,) = run_program(_POOL, bundle, pictures[0])
    assert "open the bundle after the fork" in said
