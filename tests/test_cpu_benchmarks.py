"""The CPU latency and start-up benchmarks refuse what is wrong, and count what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmarks.laps import Lap
from benchmarks.onnxruntime_cpu.contestants import (
    EAGER,
    HUGE_PAGES,
    OPENVINO,
    REWRITTEN,
    SHIPPED,
    contestants,
    open_contestant,
)
from benchmarks.onnxruntime_cpu.graphs import write_graphs
from benchmarks.onnxruntime_cpu.measure import measure, table
from benchmarks.onnxruntime_cpu.report import draw, missed_goals
from benchmarks.onnxruntime_cpu.session import Session, mosaics, parity_refusal
from benchmarks.startup.children import run_python
from benchmarks.startup.measure import FIRST, VERIFIED
from benchmarks.startup.measure import missed_goals as missed_startup_goals
from runtime.errors import GateFailedError


def answer(logit: float, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, logit, np.float32), np.zeros((count, 4), np.float32)


@pytest.mark.parametrize(("logit", "is_refused"), [(0, False), (5e-4, False), (2e-3, True), (np.nan, True)])
def test_parity_refusal__names_whoever_leaves_parity(logit: float, is_refused: bool) -> None:
    assert (parity_refusal(answer(logit), answer(0)) is not None) == is_refused


def rounds(*walls: float) -> list[list[Lap]]:
    """One round a wall time, each with a first lap that took twice as long."""
    return [[Lap(wall * factor, wall) for factor in (2, 1, 1)] for wall in walls]


def test_table__compares_the_shipped_engine_with_the_fastest_that_counts() -> None:
    found = table(
        {
            SHIPPED: rounds(0.04, 0.08, 0.05),
            "fast": rounds(0.02, 0.04, 0.05),
            OPENVINO: rounds(0.01, 0.01, 0.01),
        },
        {"off": "no parity"},
    )
    assert found["fastest"] == "fast"
    assert found["shipped_over_fastest"] == pytest.approx(2)
    fast = found["contestants"]["fast"]
    assert (fast["ratio"], fast["ratio_low"], fast["wall_ms"]) == pytest.approx((0.5, 0.5, 40))
    assert 0.5 < fast["ratio_high"] <= 1
    assert found["refused"] == {"off": "no parity"}
    row = {"backbone": "x", "batches": [found | {"batch": 1}]}
    assert len(missed_goals([row])) == 1
    assert missed_goals([{"backbone": "x", "batches": [found | {"shipped_over_fastest": 1.04}]}]) == []


def test_table__fails_where_the_shipped_engine_is_refused() -> None:
    with pytest.raises(GateFailedError, match="no parity"):
        table({"other": rounds(1)}, {SHIPPED: "no parity"})


def test_contestants__all_keep_parity_with_pytorch(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        graphs = write_graphs("dgsnet-tiny-p32", tmp_path)
        images = mosaics(2)
        reference = open_contestant(EAGER, graphs, 1)(images)
        # Compiling takes a minute; the benchmark itself refuses it if it differs.
        names = contestants(is_all=True, compiles=False)
        refusals = {
            name: parity_refusal(open_contestant(name, graphs, 1)(images), reference) for name in names
        }
    finally:
        torch.set_num_threads(threads)
    assert refusals == dict.fromkeys(names)
    assert len(names) >= 14
    variant = onnx.load(str(tmp_path / "model.attention23.onnx"), load_external_data=False)
    kinds = [node.op_type for node in variant.graph.node]
    assert (kinds.count("Attention"), kinds.count("Softmax")) == (4, 0)


def test_measure__times_each_contestant_in_processes_of_its_own(tmp_path: Path) -> None:
    graphs = write_graphs("dgsnet-tiny-p32", tmp_path)
    # One that cannot be opened is a finding.
    graphs.cpu.write_bytes(b"no graph")
    found = measure([SHIPPED, HUGE_PAGES, REWRITTEN], graphs, 2, rounds=2, laps=3, threads=1)
    assert (found["batch"], found["rounds"], list(found["refused"])) == (2, 2, [REWRITTEN])
    assert set(found["contestants"]) == {SHIPPED, HUGE_PAGES}
    assert all(row["least_ms"] > 0 for row in found["contestants"].values())


def test_session__says_when_its_process_ends(tmp_path: Path) -> None:
    graphs = write_graphs("dgsnet-tiny-p32", tmp_path)
    reference = open_contestant(SHIPPED, graphs, 1)(mosaics(1))
    with Session(SHIPPED, graphs, reference, 1) as session:
        assert session.refusal is None
        assert session.lap().wall > 0
        session._process.kill()
        with pytest.raises(GateFailedError, match="ended with -9"):
            session.lap()


def test_draw__writes_a_picture(tmp_path: Path) -> None:
    found = table({SHIPPED: rounds(1), "other": rounds(2)}, {})
    draw([{"backbone": "x", "batches": [found | {"batch": 1}]}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(sys.platform == "win32", reason="counts with wait4")
def test_run_python__measures_the_child_and_not_this_process() -> None:
    ballast = np.ones(200_000_000, np.uint8)
    small = run_python(["-c", "pass"])
    large = run_python(["-c", "import time; b = bytearray(b'x' * 100_000_000); time.sleep(0.1)"])
    assert small.peak_bytes < ballast.nbytes / 4
    assert 90e6 < large.peak_bytes - small.peak_bytes < 250e6
    assert large.wall >= 0.1
    with pytest.raises(GateFailedError, match="exit code 7: nothing to see"):
        run_python(["-c", "import sys; print('nothing to see', file=sys.stderr); sys.exit(7)"])


def test_missed_startup_goals__names_what_is_above() -> None:
    row = {"ratio": 1.1, "peak_over_allowed": 0.5}
    found = {
        "import": {"added_ms": {"numpy, runtime": 130.0}},
        "predict": {"contestants": {VERIFIED: row, FIRST: row}},
    }
    assert [line.split(":")[0] for line in missed_startup_goals(found)] == ["import_ms", "verified_ratio"]
