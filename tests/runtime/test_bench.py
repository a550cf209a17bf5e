"""bench: what it measures, what it prints, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import runtime
from runtime.bench import BenchPlan, _summary, measure, step_count, synthetic_jpeg
from runtime.cli import cli
from runtime.decode import decode_image
from runtime.detector import Detector
from runtime.errors import DataError, MissingDependencyError, UsageError
from runtime.plots import check_plot, write_bench_plot

ROOT = Path(runtime.__file__).parent.parent
PERCENTILES = ["mean", "min", "p50", "p90", "p99", "max"]


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


def test_measure__times_every_phase_as_often_as_planned(
    bundle: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    notes: list[str] = []
    plan = BenchPlan(batch_sizes=(1, 3), runs=4, warmup=2, pictures=9)
    with Detector.open(bundle) as detector:
        real = detector.backend.run

        def run(images: np.ndarray) -> Any:
            sizes.append(len(images))
            return real(images)

        monkeypatch.setattr(detector.backend, "run", run)
        report = measure(detector, [str(path) for path in pictures], plan, notes.append)
    assert sizes == [1] * 6 + [3] * 6 + [4, 4, 1]
    assert len(notes) == step_count(plan)
    assert [row["batch"] for row in report["batches"]] == [1, 3]
    for summary in (
        *report["phases"].values(),
        *(row[phase] for row in report["batches"] for phase in ("copy_ms", "infer_ms")),
    ):
        assert list(summary) == PERCENTILES
        assert 0 < summary["min"] <= summary["p50"] <= summary["p90"] <= summary["p99"] <= summary["max"]
    row = report["batches"][1]
    whole_ms = row["copy_ms"]["mean"] + row["infer_ms"]["mean"]
    assert row["pictures_per_second"] == pytest.approx(3 / whole_ms * 1e3, rel=1e-6)
    assert report["stream"]["pictures"] == 9
    json.dumps(report, allow_nan=False)


def test_summary__percentiles_are_values_that_occurred() -> None:
    values = [float(k) for k in range(1, 101)]
    assert _summary(values[::-1]) == {
        "mean": 50.5, "min": 1.0, "p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0,
    }  # fmt: skip
    assert _summary([7.0]) == dict.fromkeys(PERCENTILES, 7.0)


def test_measure__refuses_a_picture_that_cannot_be_judged(bundle: Path, tmp_path: Path) -> None:
    plan = BenchPlan(batch_sizes=(1,), runs=1, warmup=0, pictures=1)
    with Detector.open(bundle) as detector, pytest.raises(DataError, match=r"no such file.*leave it out"):
        measure(detector, [str(tmp_path / "none.png")], plan, lambda note: None)


def test_synthetic_jpeg__is_the_same_picture_every_time() -> None:
    content = synthetic_jpeg(96, 64)
    assert content == synthetic_jpeg(96, 64)
    assert decode_image(content).shape == (64, 96, 3)


def test_bench__prints_a_table_and_writes_json(bundle: Path, tmp_path: Path) -> None:
    done = bench(bundle, "--runs", 2, "--warmup", 1, "--pictures", 5, "--size", "96x64", "--json-file",
                 tmp_path / "bench.json")  # fmt: skip
    assert done.exception is None, done.output
    rows = {line[:18].strip(): line[18:].split() for line in done.stdout.splitlines()}
    assert rows["ms"] == ["p50", "p90", "p99", "mean", "pictures/s"]
    assert {"decode", "select", "copy, batch 1", "infer, batch 1", "infer, batch 4", "infer, batch 8"} <= set(
        rows
    )
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["pictures"] == {"count": 1, "synthetic": [96, 64]}
    assert report["backend"] == "onnxruntime:cpu"


def test_bench__json_is_the_only_output(bundle: Path, pictures: list[Path]) -> None:
    done = bench(bundle, pictures[0].parent, "--json", "--batches", "2", "--runs", 1, "--pictures", 2)
    report = json.loads(done.stdout)
    assert [row["batch"] for row in report["batches"]] == [2]
    assert report["pictures"] == {"count": 6, "synthetic": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "1,99"], "found 99, this engine takes 1 to 8"),
        (["--batches", "0"], "expected sizes such as 1,8,32"),
        (["--batches", "x"], "expected sizes such as 1,8,32"),
        (["--size", "10x10"], "at least 32x32"),
        (["--size", "huge"], "expected WIDTHxHEIGHT"),
        (["--size", "70000x100"], "at most 65500 pixels a side"),
        (["--size", "60000x60000"], "at most 200000000 pixels in all"),
        (["--plot", "x.gif"], "expected a name that ends in .png, .svg, .pdf"),
    ],
)
def test_bench__refuses_before_it_measures(bundle: Path, arguments: list[str], message: str) -> None:
    done = bench(bundle, *arguments)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert done.stdout == ""


def test_bench__plot_without_matplotlib_is_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "bench", bundle, "--plot", tmp_path / "x.png"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "--plot needs matplotlib" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot__is_a_figure_of_its_suffix(
    bundle: Path, pictures: list[Path], tmp_path: Path, suffix: str
) -> None:
    plan = BenchPlan(batch_sizes=(1, 2), runs=1, warmup=0, pictures=1)
    with Detector.open(bundle) as detector:
        report = measure(detector, [str(pictures[0])], plan, lambda note: None)
    path = tmp_path / f"figure{suffix}"
    check_plot(path)
    write_bench_plot(report, path)
    if suffix == ".png":
        with Image.open(path) as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 200
    else:
        assert path.read_bytes().startswith({".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])


def test_check_plot__says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="--json-file"):
        check_plot(tmp_path / "x.png")
    with pytest.raises(UsageError, match="ends in"):
        check_plot(tmp_path / "x.jpg")
