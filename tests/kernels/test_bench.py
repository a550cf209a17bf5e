"""What of the benchmark needs no GPU: its rivals' arithmetic, its judgement, its picture, its refusals."""

from __future__ import annotations

import itertools
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import bench, cli, report, surgery, surgery_affine
from kernels.plot import draw_svg


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("form", ["affine", "general"])
def test_rivals__compute_the_same_thing(form: str, dtype: str) -> None:
    from kernels.accuracy import LIMITS, Case, make_inputs, relative_errors

    case = Case(form == "affine", 32, 768, report.DTYPES[dtype])
    inputs = make_inputs(case, "cpu")
    runs = bench.rivals(form)
    assert set(runs) == {"ours", "eager", "compile", "copy"}
    function: Any = surgery_affine if form == "affine" else surgery
    want = function(*inputs, align=bench.ALIGN, eps=bench.EPS, backend="torch")
    assert torch.equal(runs["ours"](*inputs), want)
    assert relative_errors(runs["eager"](*inputs), want)[0] < 4 * LIMITS[report.DTYPES[dtype]]
    assert torch.equal(runs["copy"](*inputs), inputs[0])


def speed(**change: Any) -> bench.Speed:
    values: dict[str, Any] = {
        "form": "affine",
        "dtype": "fp32",
        "batch": 1024,
        "width": 768,
        "bytes_moved": 2 * 1024 * 768 * 4,
        "device_us": {
            "ours": [9.0, 10.0, 11.0],
            "eager": [1.0, 30.0, 99.0],
            "compile": [1.0, 9.5, 99.0],
            "copy": [1.0, 5.0, 99.0],
        },
        "host_us": {"ours": 40.0, "eager": 500.0, "compile": 90.0, "copy": 5.0},
    }
    return bench.judge(bench.Speed(**{**values, **change}))


def test_judge__compares_medians_with_the_floors() -> None:
    fine = speed()
    assert (fine.over_eager, fine.over_compile, fine.of_copy) == (3.0, 0.95, 0.5)
    assert fine.missed == []  # half the bandwidth is fine for a small tensor
    slow = speed(device_us={name: [0.0, 10.0, 0.0] for name in ("ours", "eager", "compile", "copy")})
    assert slow.missed == ["times eager 1.00, expected at least 3"]
    assert speed(host_us={"ours": 41.0}).missed == ["us on the host 41.00, expected at most 40"]
    assert speed(bytes_moved=256_000_000).missed == ["of copy bandwidth 0.50, expected at least 0.8"]


def test_judge__holds_the_general_form_to_its_own_bytes() -> None:
    """It moves twice a copy's bytes: half a copy's speed is full bandwidth."""
    assert speed(form="general", bytes_moved=4 * 1024 * 768 * 4).of_copy == 1.0
    assert bench.moved_bytes("affine", "fp16", 10, 512) == 2 * 10 * 512 * 2
    assert bench.moved_bytes("general", "fp32", 10, 512) == 4 * 10 * 512 * 4


def test_judge__applies_speed_floors_only_where_they_hold() -> None:
    times = {name: [0.0, 10.0, 0.0] for name in ("ours", "eager", "compile", "copy")}
    assert speed(device_us=times, batch=16).missed == []
    assert speed(device_us=times, width=2048).missed == []


def test_count_sets__exceeds_the_cache_and_fits_the_memory() -> None:
    assert bench.count_sets(1_000_000, 50_000_000, 10**10) == 100
    assert bench.count_sets(10**9, 50_000_000, 10**11) == 4
    with pytest.raises(ValueError, match=r"device memory: found 1\.0 GB free, expected 16\.0 GB"):
        bench.count_sets(10**9, 50_000_000, 10**9)


def test_list_shapes__meets_every_floor_in_every_dtype() -> None:
    shapes = bench.list_shapes(report.FORMS, tuple(report.DTYPES))
    assert shapes[0][:2] == ("affine", "fp32")  # the headline comes first
    for form in report.FORMS:
        for dtype in report.DTYPES:
            mine = [shape[2:] for shape in shapes if shape[:2] == (form, dtype)]
            corners = itertools.product(bench.FLOOR_BATCHES, (*bench.FLOOR_WIDTHS, 768))
            assert set(mine) >= set(corners), (form, dtype)
            large = {d for b, d in mine if bench.moved_bytes("affine", dtype, b, d) >= bench.BANDWIDTH_BYTES}
            assert large == {d for _, d in mine}
    assert bench.list_shapes(["general"], ["fp16"], [7], [64]) == [("general", "fp16", 7, 64)]


def test_take_turns__asks_in_turn_and_forgets_the_warm_up() -> None:
    asked = []

    def timer(name: str) -> Callable[[], float]:
        def ask() -> float:
            asked.append(name)
            return float(len(asked))

        return ask

    times = bench.take_turns({"ours": timer("ours"), "copy": timer("copy")}, 2)
    assert asked == ["ours", "copy"] * (bench.WARM_UP + 2)
    first = 2 * bench.WARM_UP + 1
    assert times == {"ours": [first, first + 2], "copy": [first + 1, first + 3]}


def test_percentiles__of_known_numbers() -> None:
    assert bench.percentiles([float(n) for n in range(101)]) == [10.0, 50.0, 90.0]


def test_draw_svg__draws_every_curve() -> None:
    curves = {f"kernel <{n}>": [(1e5, 0.2), (1e8, 0.9)] for n in range(9)}
    root = ET.fromstring(draw_svg(curves, title="GPU & co"))
    lines = root.findall("{*}polyline")
    assert len(lines) == 9
    assert len({(line.get("stroke"), line.get("stroke-dasharray")) for line in lines}) == 9
    left, right = (tuple(map(float, p.split(","))) for p in lines[0].get("points", "").split())
    assert left[0] < right[0]
    assert left[1] > right[1]  # a larger share is higher up
    with pytest.raises(ValueError, match="found no points"):
        draw_svg({}, title="")


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kernels", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_bench__without_a_gpu_is_one_line_and_exit_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_cli(monkeypatch, "bench") == 3
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert written.err.startswith("error: no CUDA device found")


def test_bench__shows_no_speed_when_the_numbers_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "find_wrong_numbers", lambda *_: ["affine 1x768: error 1.00"])
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("timed all the same"))
    assert run_cli(monkeypatch, "bench") == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert "FAILED: affine 1x768" in written.err


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the command but the device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "find_wrong_numbers", lambda _shapes: [])
    monkeypatch.setattr(bench, "describe_machine", lambda: {"gpu": "none"})


ONE_WIDTH = ("bench", "--form", "affine", "--dtype", "fp32", "--width", "768")


def test_bench__keeps_what_it_measured_when_it_is_cut_off(
    pretended_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(_form: str, _dtype: str, batch: int, _width: int, _repeats: int) -> bench.Speed:
        if batch > 512:
            raise KeyboardInterrupt
        return speed(batch=batch)

    monkeypatch.setattr(bench, "measure", measure)
    written = tmp_path / "bench.json"
    plot = tmp_path / "bench.svg"
    assert run_cli(monkeypatch, *ONE_WIDTH, "--json-file", str(written), "--plot", str(plot)) == 130
    kept = json.loads(written.read_text())
    assert [row["batch"] for row in kept["rows"]] == [32, 512]
    assert kept["complete"] is False
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.svg"}
    monkeypatch.setattr(bench, "measure", lambda *shape: speed(batch=shape[2]))
    assert run_cli(monkeypatch, *ONE_WIDTH, "--json-file", str(written)) == 0
    kept = json.loads(written.read_text())
    assert (kept["complete"], len(kept["rows"])) == (True, len(bench.BATCHES["fp32"]))


def test_bench__goes_on_after_a_shape_that_does_not_fit(
    pretended_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_form: str, _dtype: str, batch: int, _width: int, _repeats: int) -> bench.Speed:
        if batch == 512:
            raise ValueError("device memory: found 1.0 GB free")
        return speed(batch=batch)

    monkeypatch.setattr(bench, "measure", measure)
    assert run_cli(monkeypatch, *ONE_WIDTH, "--json") == 0
    written = capsys.readouterr()
    document = json.loads(written.out)
    assert document["skipped"] == ["affine fp32 512 768: device memory: found 1.0 GB free"]
    assert "SKIPPED: affine fp32 512 768" in written.err
    assert [row["batch"] for row in document["rows"]] == [32, 8192, 65536]
    assert run_cli(monkeypatch, *ONE_WIDTH, "--check") == 1  # what was not measured was not shown to hold


def test_cli__names_the_forms_and_dtypes_that_the_report_knows() -> None:
    assert report.FORMS == cli.FORMS
    assert tuple(report.DTYPES) == cli.DTYPES


@pytest.mark.parametrize(
    "arguments", [("report", "--width", "0"), ("bench", "--dtype", "fp64"), ("nothing",)]
)
def test_cli__refuses_bad_usage(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    assert run_cli(monkeypatch, *arguments) == 2
