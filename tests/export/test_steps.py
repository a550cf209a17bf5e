"""Steps in processes of their own: what comes back, what a death of either side means, and what stays."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.export.measure import missed_goals
from benchmarks.export.memory import TreeMemory, descendants
from export.source import source_kind
from export.steps.child import run_in_child
from export.steps.clock import PhaseClock
from runtime.errors import EngineBuildError, UsageError

ROOT = Path(__file__).parent.parent.parent
SLEEP = "import time; from export.steps.child import run_in_child; run_in_child('nap', time.sleep, 60)"


def wait_for(claim: Any, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := claim()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_run_in_child__gives_the_result_of_another_process() -> None:
    assert run_in_child("sum", operator.add, 2, 3) == 5
    assert run_in_child("who", os.getpid) != os.getpid()


def test_run_in_child__raises_what_the_work_raised(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing there") as caught:
        run_in_child("kind", source_kind, tmp_path / "absent")
    assert "source_kind" in str(caught.value.__cause__)  # the child's own traceback
    with pytest.raises(FileNotFoundError) as missing:
        run_in_child("open", os.stat, str(tmp_path / "absent"))
    assert missing.value.filename == str(tmp_path / "absent")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_in_child("divide", operator.truediv, 1, 0)


def test_run_in_child__what_a_library_prints_is_no_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_in_child("print", print, "noise") is None
    assert run_in_child("write", os.write, 1, b"more noise\n") == 11
    out, err = capfd.readouterr()
    assert out == ""
    assert "noise" in err


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "ended by SIGKILL, as the system does when memory runs out"),
        (signal.SIGSEGV, "ended by SIGSEGV, a crash inside a library"),
    ],
)
def test_run_in_child__a_death_is_one_line(number: signal.Signals, message: str) -> None:
    with pytest.raises(EngineBuildError, match=f"^large step: its process was {message}") as caught:
        run_in_child("large step", signal.raise_signal, number)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_run_in_child__ends_with_its_parent(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], cwd=ROOT, stderr=subprocess.PIPE) as parent:
        child = wait_for(lambda: descendants(parent.pid))[0]
        wait_for(lambda: b"export.steps" in Path(f"/proc/{child}/cmdline").read_bytes())
        time.sleep(0.5)  # long enough for the work to have begun
        assert is_alive(child)
        parent.send_signal(number)
        parent.wait(20)
        wait_for(lambda: not is_alive(child), 20)


def build(run: Path, target: Path) -> subprocess.Popen[str]:
    words = ["build-engine", run, "-o", target, "-q", "--backend", "onnxruntime,tensorrt-rtx"]
    return subprocess.Popen(
        [sys.executable, "-m", "export", *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_build_engine__a_killed_step_is_one_line_and_leaves_nothing(run_folder: Path, tmp_path: Path) -> None:
    with build(run_folder, tmp_path / "b") as process:
        wait_for(lambda: list(tmp_path.glob(".b.tmp-*")))
        os.kill(wait_for(lambda: descendants(process.pid))[0], signal.SIGKILL)
        _out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: checkpoint to ONNX: its process was ended by SIGKILL")
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", ["model.onnx", "engines"], ids=["graph", "engine"])
def test_build_engine__an_interrupt_leaves_nothing(named: str, run_folder: Path, tmp_path: Path) -> None:
    with build(run_folder, tmp_path / "b") as process:
        wait_for(lambda: list(tmp_path.glob(f".b.tmp-*/{named}")))
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    wait_for(lambda: not any(is_alive(child) for child in children), 20)


def test_phase_clock__keeps_what_ended() -> None:
    clock = PhaseClock()
    with clock.phase("a"):
        time.sleep(0.02)
    with pytest.raises(ValueError, match="x"), clock.phase("b"):
        raise ValueError("x")
    with clock.phase("c", is_numeric=True):
        pass
    assert [(phase.name, phase.is_numeric) for phase in clock.phases] == [("a", False), ("c", True)]
    assert clock.phases[0].seconds >= 0.02
    assert clock.phases[0].started <= clock.phases[1].started


def test_tree_memory__sees_the_memory_of_a_grandchild() -> None:
    size = 300_000_000
    inner = f"held = bytearray({size}); import time; held[::4096] = bytes(len(held[::4096])); time.sleep(1)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with TreeMemory() as memory:
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", outer], check=True)
    assert size < memory.peak() < size + 200_000_000
    assert size < memory.largest_process <= memory.peak() + 50_000_000
    assert memory.peak(end=started - 1) == 0


def test_missed_goals__are_those_of_time_and_memory() -> None:
    row = {"name": "x", "seconds": 179.0, "peak_bytes": 5_900_000_000, "numeric_peak_bytes": 1}
    assert missed_goals(row) == []
    assert missed_goals(row | {"seconds": 181.0}) == ["x: took 181 s, expected at most 180 s"]
    assert missed_goals(row | {"numeric_peak_bytes": 6_100_000_000}) == ["x: 6.10 GB, expected at most 6 GB"]
