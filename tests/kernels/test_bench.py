"""What of the benchmark needs no GPU: its rivals' arithmetic, its judgement, its picture, its refusals."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
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
    with pytest.raises(ValueError, match=r"device memory: found 1\.0 GB free, expected 8\.0 GB"):
        bench.count_sets(10**9, 50_000_000, 10**9)


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


def test_cli__names_the_forms_and_dtypes_that_the_report_knows() -> None:
    assert report.FORMS == cli.FORMS
    assert tuple(report.DTYPES) == cli.DTYPES


@pytest.mark.parametrize(
    "arguments", [("report", "--width", "0"), ("bench", "--dtype", "fp64"), ("nothing",)]
)
def test_cli__refuses_bad_usage(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    assert run_cli(monkeypatch, *arguments) == 2
