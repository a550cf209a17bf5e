"""The kernels compiled ahead of time for GPUs that are not here, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
WIDTHS = {512, 768, 1000, 1024, 1280, 4096, 513}
# Builds for the offsets and the NaN, without the table.
OFFSETS = """
import json, torch
from kernels.gradient_surgery.triton_kernel import build
print(json.dumps([build(90, 768, torch.float32, affine=a, stats=True).asm["ttir"] for a in (True, False)]))
"""
STEP = """
import json, types, torch
from kernels.gradient_surgery import triton_kernel
torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=256)
_, rows, warps = triton_kernel.shape_tile(1)
programs = triton_kernel._resident_programs(torch.device("cuda"), warps)
print(json.dumps([triton_kernel.MAX_ROWS, rows, programs]))
"""
# Triton's own launch path up to the driver: what it would build for which arguments.
BUILDS = """
import json, torch, triton
from triton.backends.compiler import GPUTarget
from kernels.gradient_surgery import triton_kernel

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = get_current_stream = lambda self, *device: 0

class Built:
    function = packed_metadata = None
    def launch_metadata(self, *arguments): pass
    def run(self, *arguments): pass

builds = {}
def compile_instead(kernel):
    def store(key, *rest):
        kernel.device_caches[0][0][key] = builds[key] = Built()
        return builds[key]
    return store

triton.runtime.driver.set_active(Driver())
for kernel in (triton_kernel.surgery_affine_kernel, triton_kernel.surgery_kernel):
    kernel._do_compile = compile_instead(kernel)
counts = []
def launch(rows, width, align, eps, affine, paper=False):
    g, w, r = torch.zeros(rows, width), torch.zeros(width), torch.zeros(rows)
    inputs = (g, w, w, r, r) if affine else (g, g, g, None, None)
    triton_kernel.launch(*inputs, g, None, align=align, eps=eps, paper=paper, full=False)

for affine in (True, False):
    builds.clear()
    for rows in (1, 16, 31, 32, 70000):
        for align in (0, 1, 0.1, -3.5):
            launch(rows, 8, align, 0, affine)
            launch(rows, 8, align, 1e-6, affine)
    counts.append(len(builds))
    launch(2, 8, 0.1, 0.0, affine, paper=True)
    counts.append(len(builds))
print(json.dumps(counts))
"""

# Read from the package, because importing triton here would decide for every test of this process.
KNOWS_THOR = pytest.mark.skipif(
    tuple(int(part) for part in metadata.version("triton").split(".")[:2]) < (3, 7),
    reason="triton before 3.7 knows no sm_110 (Thor), and still knows sm_101",
)


def last_json(arguments: list[str], cache: Path) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        # A cache of its own, so that nothing built by an earlier run can stand in.
        env={**ENVIRONMENT, "TRITON_CACHE_DIR": str(cache)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def report(cache: Path, *options: str) -> list[dict[str, Any]]:
    return last_json(["-m", "kernels", "report", "--json", *options], cache)["rows"]


def assert_within_limits(rows: list[dict[str, Any]]) -> None:
    """The command judges too; here the numbers are looked at again, without its code."""
    for row in rows:
        assert row["problems"] == [], row
        assert row["supported"], row
        assert row["spills"] == row["stack"] == 0, row
        assert 16 <= row["registers"] <= 64, row
        size = 4 if row["variant"]["dtype"] == "fp32" else 2
        if row["variant"]["width"] * size % 16 == 0:
            assert row["mix"]["store_less"] == 0, row
            assert row["mix"]["store_128"] >= 1, row
            # Residuals are narrow: at most two loads for each of two rows of a tile.
            assert row["mix"]["load_less"] <= (4 if row["variant"]["form"] == "affine" else 0), row
            assert row["mix"]["load_128"] >= 3, row


@KNOWS_THOR
@pytest.mark.parametrize("form", ["affine", "general"])
def test_kernels__fit_every_target_without_spills(tmp_path: Path, form: str) -> None:
    rows = report(tmp_path, "--dtype", "fp32", "--form", form)
    built = {(row["variant"]["target"], row["variant"]["width"]) for row in rows}
    assert built == {(sm, d) for sm in (87, 90) for d in WIDTHS} | {
        (sm, 768) for sm in (80, 86, 89, 100, 110, 120)
    }
    assert_within_limits(rows)


def test_kernels__fit_in_half_precision(tmp_path: Path) -> None:
    rows = report(tmp_path, "--dtype", "fp16", "--target", "87", "--width", "768", "--width", "1000")
    assert len(rows) == 4
    assert_within_limits(rows)


def test_kernels__read_16_bytes_at_once_with_statistics_too(tmp_path: Path) -> None:
    (row,) = report(
        tmp_path, "--dtype", "fp16", "--target", "90", "--width", "768", "--form", "general", "--stats"
    )
    assert row["problems"] == []
    assert (row["mix"]["load_128"], row["mix"]["load_less"]) == (3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_kernels__fit_every_target_in_half_precision(tmp_path: Path, dtype: str) -> None:
    assert_within_limits(report(tmp_path, "--dtype", dtype))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--order", "paper"), ("--harm", "full"), ("--stats",), ("--order", "paper", "--stats")],
    ids=" ".join,
)
def test_kernels__fit_with_every_option(tmp_path: Path, options: tuple[str, ...]) -> None:
    for row in report(tmp_path, "--dtype", "fp32", *options):
        assert row["problems"] == [], row


@KNOWS_THOR
def test_report__shows_a_target_that_triton_lacks(tmp_path: Path) -> None:
    """sm_101 became sm_110; asking LLVM for it would end the process."""
    arguments = ["-m", "kernels", "report", "--form", "general", "--dtype", "fp32"]
    arguments += ["--target", "101", "--target", "87", "--width", "64"]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**ENVIRONMENT, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    lacking, built = done.stdout.splitlines()[-2:]
    assert re.search(r"101\s+64  not known to the installed triton", lacking)
    assert re.search(r"87\s+64\s+\d+\s+0\s+0 ", built)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("report.MAX_REGISTERS = 8", "registers, expected at most 8"),
        (
            "report.triton_kernel.build = functools.partial(report.triton_kernel.build, aligned=False)",
            "loads: found 0 of 16 bytes",
        ),
    ],
    ids=["registers", "alignment"],
)
def test_report__judges_the_code_that_it_reads(tmp_path: Path, change: str, problem: str) -> None:
    """A limit that no build meets, and tensors of unknown alignment, make the same command fail."""
    program = (
        f"import functools, sys; from kernels import report; {change}\n"
        "sys.argv = 'kernels report --dtype fp32 --form affine --target 87 --width 512'.split()\n"
        "from kernels.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 1, done.stderr
    assert problem in done.stdout


def test_kernels__compute_row_offsets_in_64_bits(tmp_path: Path) -> None:
    for code in last_json(["-c", OFFSETS], tmp_path):
        code = "\n".join(line.split(" loc(")[0] for line in code.splitlines())
        offsets = re.findall(r"tt\.addptr %(\w+)_ptr, %\w+ : .*, (\S+)$", code, re.MULTILINE)
        of_rows = [(name, kind) for name, kind in offsets if name in ("grad", "out", "stats")]
        assert {name for name, _ in of_rows} == {"grad", "out", "stats"}
        assert {kind for _, kind in of_rows} == {"i64"}, of_rows
        assert set(re.findall(r"arith\.muli .* : (\S+)$", code, re.MULTILINE)) == {"i64"}
        assert "trunci" not in code


def test_kernels__row_numbers_fit_32_bits_one_step_past_the_last(tmp_path: Path) -> None:
    """The loop counts rows in 32 bits; on a device of twice an H100's size, at the width of most rows."""
    most, rows, programs = last_json(["-c", STEP], tmp_path)
    assert most > 2_000_000_000
    assert most + rows * programs + rows < 2**31


def test_kernels__are_not_built_again_for_other_numbers(tmp_path: Path) -> None:
    """B, align and eps are arguments; the order is a constant of the build."""
    assert last_json(["-c", BUILDS], tmp_path) == [1, 2, 1, 2]


def test_report__refuses_an_interpreting_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kernels", "report"],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: TRITON_INTERPRET: found set")
