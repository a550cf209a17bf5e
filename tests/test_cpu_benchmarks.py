"""The CPU latency and start-up benchmarks refuse what is wrong, and count what they say."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from benchmarks.onnxruntime_cpu.contestants import EAGER, SHIPPED, main_contestants, other_contestants
from benchmarks.onnxruntime_cpu.graphs import write_graphs
from benchmarks.onnxruntime_cpu.measure import measure, mosaics, refusals
from benchmarks.onnxruntime_cpu.report import draw, missed_goals
from benchmarks.startup.children import run_python
from benchmarks.startup.measure import FIRST, VERIFIED
from benchmarks.startup.measure import missed_goals as missed_startup_goals
from runtime.errors import GateFailedError


def sleeper(seconds: float, logit: float = 0.0) -> Any:
    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(seconds)
        return np.full(len(images), logit, np.float32), np.zeros((len(images), 4), np.float32)

    return run


def test_refusals__name_whoever_leaves_parity() -> None:
    contestants = {
        "same": sleeper(0),
        "near": sleeper(0, 5e-4),
        "off": sleeper(0, 2e-3),
        "nan": sleeper(0, np.nan),
    }
    images = mosaics(2)
    assert set(refusals(contestants, sleeper(0)(images), images)) == {"off", "nan"}


def test_measure__compares_the_shipped_engine_with_the_fastest_that_counts() -> None:
    contestants = {SHIPPED: sleeper(0.04), "fast": sleeper(0.02), "OpenVINO": sleeper(0.005)}
    found = measure(contestants, 1, 2, "test")
    assert found["fastest"] == "fast"
    assert 1.3 < found["shipped_over_fastest"] <= 2.1
    row = {"backbone": "x", "refused": {}, "batches": [found]}
    assert len(missed_goals([row])) == 1
    assert missed_goals([row | {"batches": [found | {"shipped_over_fastest": 1.04}]}]) == []


def test_contestants__all_keep_parity_with_pytorch(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        graphs = write_graphs("dgsnet-tiny-p32", tmp_path)
        contestants = main_contestants(graphs, 1)
        # Compiling takes a minute; the benchmark itself refuses it if it differs.
        del contestants["torch.compile"]
        others = {name: opened() for name, opened in other_contestants(graphs, 1).items()}
    finally:
        torch.set_num_threads(threads)
    images = mosaics(2)
    assert refusals(contestants | others, contestants[EAGER](images), images) == {}
    variant = onnx.load(str(tmp_path / "model.attention23.onnx"), load_external_data=False)
    kinds = [node.op_type for node in variant.graph.node]
    assert (kinds.count("Attention"), kinds.count("Softmax")) == (4, 0)


def test_draw__writes_a_picture(tmp_path: Path) -> None:
    found = measure({SHIPPED: sleeper(0), "other": sleeper(0)}, 1, 1, "test")
    draw([{"backbone": "x", "refused": {}, "batches": [found]}], tmp_path / "plot.png")
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
