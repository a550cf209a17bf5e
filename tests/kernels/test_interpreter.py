"""The Triton kernels run by Triton's interpreter on a CPU, in processes of their own, against float64."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest
import torch

from kernels import accuracy

Child = Callable[..., Any]
SWEEP = """
import json, warnings
warnings.simplefilter("ignore", RuntimeWarning)  # numpy says aloud what a GPU divides in silence
import torch
torch.set_num_threads(1)
from kernels.accuracy import list_cases, sweep
from kernels.gradient_surgery import triton_kernel
runs = 0
for name in ("surgery_kernel", "surgery_affine_kernel"):
    kernel = getattr(triton_kernel, name)
    def counted(grid, kernel=kernel):
        global runs
        runs += 1
        return kernel[grid]
    counter = type("Counter", (), {{"__getitem__": lambda self, grid, f=counted: f(grid)}})
    setattr(triton_kernel, name, counter())
outcomes = sweep(list_cases({widths}), device="cpu", backend="triton")
print(json.dumps({{
    "interpreted": triton_kernel.INTERPRETED, "runs": runs, "cases": len(outcomes),
    "problems": [f"{{o.case}}: {{p}}" for o in outcomes for p in o.problems],
    "covered": sorted({{
        str(getattr(o.case, name)) for o in outcomes for name in ("dtype", "order", "harm", "layout")
    }}),
}}))
"""
# 4 GB of addresses, of which four pages are ever touched.
FAR_APART = """
import json, torch
from kernels.accuracy import Case, relative_errors
from kernels import surgery_affine, surgery
far = 2**30 + 64  # fits 32 bits; twice that does not
torch.manual_seed(0)
room = torch.empty(2 * far + 4096, dtype=torch.float16)
errors = []
for shape, strides in (((3, 96), (far, 1)), ((96, 3), (1, far))):
    grad = room.as_strided(shape, strides)
    grad.copy_(torch.randn(shape))
    rows, width = shape
    w, r, image = torch.randn(width), torch.randn(rows), torch.randn(shape)
    for order in ("released", "paper"):
        for function, rest in ((surgery_affine, (w, r, w, r)), (surgery, (image, image))):
            want = function(grad.double(), *rest, align=0.2, eps=0.3, order=order, backend="torch")
            got = function(grad, *rest, align=0.2, eps=0.3, order=order, backend="triton")
            errors.append(relative_errors(got, want)[0])
    want = surgery_affine(grad.double(), w, r, w, r, align=0.2, eps=0.3, backend="torch")
    surgery_affine(grad, w, r, w, r, align=0.2, eps=0.3, backend="triton", out=grad)
    errors.append(relative_errors(grad, want)[0])
print(json.dumps(errors))
"""

# Every tensor ends where a page begins that must not be touched: one byte too far ends the process.
GUARDED = """
import ctypes, json, mmap, warnings
import torch
from kernels import surgery, surgery_affine
warnings.simplefilter("ignore", RuntimeWarning)
libc, page, rooms = ctypes.CDLL(None), mmap.PAGESIZE, []

def guard(tensor):
    size = -(-tensor.nbytes // page) * page
    room = mmap.mmap(-1, size + page)
    rooms.append(room)
    fence = ctypes.addressof(ctypes.c_char.from_buffer(room)) + size
    assert libc.mprotect(ctypes.c_void_p(fence), page, 0) == 0
    flat = torch.frombuffer(room, dtype=tensor.dtype, offset=size - tensor.nbytes, count=tensor.numel())
    return flat.view(tensor.shape).copy_(tensor)

calls = 0
for rows, width in ((1, 7), (5, 100), (7, 1), (3, 600)):
    g, w, r = guard(torch.randn(rows, width)), guard(torch.randn(width)), guard(torch.randn(rows))
    for function, rest in ((surgery_affine, (w, r, w, r)), (surgery, (g, g))):
        for stats in (None, guard(torch.empty(rows, 3))):
            function(g, *rest, align=0.2, backend="triton", out=guard(torch.empty_like(g)), stats=stats)
            calls += 1
print(json.dumps(calls))
"""

# One strided tensor at a time: the kernel may take the rest for contiguous, never that one.
STRIDED = """
import json, warnings
import torch
from kernels import surgery, surgery_affine
from kernels.accuracy import relative_errors
warnings.simplefilter("ignore", RuntimeWarning)
torch.manual_seed(0)
g, text, image = (torch.randn(5, 24) for _ in range(3))
w_text, w_image, r_text, r_image = torch.randn(24), torch.randn(24), torch.randn(5), torch.randn(5)
spread = lambda tensor: torch.stack([tensor, torch.full_like(tensor, 7.0)], dim=-1)[..., 0]
affine, general = (g, w_text, r_text, w_image, r_image), (g, text, image)
errors = {}
for function, inputs in ((surgery_affine, affine), (surgery, general)):
    want = function(*(t.double() for t in inputs), align=0.2, backend="torch")
    for place in range(len(inputs) + 1):
        tensors = [spread(t) if place == at else t for at, t in enumerate((*inputs, torch.empty(5, 24)))]
        got = function(*tensors[:-1], align=0.2, backend="triton", out=tensors[-1])
        errors[f"{function.__name__} {place}"] = relative_errors(got, want)[0]
print(json.dumps(errors))
"""

# With eps = 0 only the direction of the text's weight or gradient counts, be its squares 0 or infinite.
SIZES = """
import json, warnings
import torch
from kernels import surgery, surgery_affine
from kernels.accuracy import relative_errors
warnings.simplefilter("ignore", RuntimeWarning)
torch.manual_seed(0)
g, text, w, r = torch.randn(3, 40), torch.randn(3, 40), torch.randn(40), torch.randn(3)
errors = []
for harm in ("positive", "full"):
    for size in (2.0**-100, 2.0**100):
        for function, inputs in ((surgery_affine, (g, w * size, r, w, r)), (surgery, (g, text * size, text))):
            options = {"align": 0.2, "eps": 0.0, "harm": harm}
            want = function(*(t.double() for t in inputs), **options, backend="torch")
            errors.append(relative_errors(function(*inputs, **options, backend="triton"), want)[0])
print(json.dumps(errors))
"""


VERSIONS = {
    name: tuple(int(part) for part in metadata.version(name).split(".")[:2]) for name in ("triton", "numpy")
}
INTERPRETS_LOOPS = pytest.mark.skipif(
    VERSIONS["triton"] < (3, 7) and VERSIONS["numpy"] >= (2, 4),
    reason="the interpreter of triton before 3.7 fails on a loop's bounds under numpy 2.4 or later",
)


@pytest.fixture(scope="module")
def interpret() -> Child:
    """Runs a program with the variable set before anything is imported; returns the JSON it prints last."""

    def run(program: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**os.environ, "TRITON_INTERPRET": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def assert_clean(result: dict[str, Any]) -> None:
    assert result["problems"] == []
    assert result["interpreted"]
    # Four calls a case, all but those on an expanded gradient, which cannot be written over.
    assert 3 * result["cases"] < result["runs"] <= 4 * result["cases"]
    assert {"torch.float32", "torch.float16", "torch.bfloat16", *accuracy.LAYOUTS} <= set(result["covered"])
    assert {"released", "paper", "positive", "full"} <= set(result["covered"])


@INTERPRETS_LOOPS
def test_kernels__interpreted_agree_with_float64(interpret: Child) -> None:
    assert_clean(interpret(SWEEP.format(widths=(1, 512, 1000))))


@INTERPRETS_LOOPS
@pytest.mark.slow
@pytest.mark.parametrize(
    "widths", [(2, 3, 5, 7, 16, 31, 63), (64, 127, 100, 257, 768), (513, 1024, 1280), (4095, 4096)]
)
def test_kernels__interpreted_agree_with_float64_at_more_widths(
    interpret: Child, widths: tuple[int, ...]
) -> None:
    assert_clean(interpret(SWEEP.format(widths=widths)))


@INTERPRETS_LOOPS
def test_kernels__reach_elements_beyond_32_bit_offsets(interpret: Child) -> None:
    errors = interpret(FAR_APART)
    assert len(errors) == 10
    assert max(errors) < accuracy.LIMITS[torch.float16]


@INTERPRETS_LOOPS
def test_kernels__take_any_one_strided_tensor(interpret: Child) -> None:
    errors = interpret(STRIDED)
    assert len(errors) == 6 + 4
    assert max(errors.values()) < accuracy.LIMITS[torch.float32], errors


@INTERPRETS_LOOPS
def test_kernels__direction_has_no_size(interpret: Child) -> None:
    errors = interpret(SIZES)
    assert len(errors) == 8
    assert max(errors) < accuracy.LIMITS[torch.float32]


@INTERPRETS_LOOPS
def test_kernels__touch_nothing_past_the_end_of_a_tensor(interpret: Child) -> None:
    """The row asked for ahead of its turn, above all: nobody looks at it behind the last one."""
    assert interpret(GUARDED) == 16


@pytest.mark.parametrize("spoil", ["scale", "row", "nan"])
def test_measure__sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    """The sweep above proves nothing unless it can fail."""
    right = accuracy.surgery_affine

    def wrong(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        result = right(*inputs, **options)
        if inputs[0].dtype == torch.float32:
            if spoil == "scale":
                result *= 1.00001
            elif spoil == "row":
                result[-1, 0] += result[-1].abs().max() * 1e-5
            else:
                result.nan_to_num_(0.0)
        return result

    monkeypatch.setattr(accuracy, "surgery_affine", wrong)
    case = accuracy.Case(True, 5, 64, torch.float32, eps=0.0)
    assert accuracy.measure(case, "cpu", "torch").problems
    monkeypatch.undo()
    assert accuracy.measure(case, "cpu", "torch").problems == []


def test_measure__allows_another_build_another_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the build with statistics, or for other strides or alignment, adds up in another order."""
    right = accuracy.surgery_affine

    def rounded(grad: torch.Tensor, *rest: torch.Tensor, **options: Any) -> torch.Tensor:
        result = right(grad, *rest, **options)
        build = (options.get("stats") is not None) + 2 * grad.is_contiguous() + (grad.data_ptr() % 16 != 0)
        return result.mul_(1 + 1.2e-7 * build) if result.dtype == torch.float32 else result

    monkeypatch.setattr(accuracy, "surgery_affine", rounded)
    for case in accuracy.list_cases((64,), dtypes=(torch.float32,), forms=(True,)):
        for layout in accuracy.LAYOUTS:
            outcome = accuracy.measure(dataclasses.replace(case, layout=layout), "cpu", "torch")
            assert outcome.problems == [], outcome.case


def test_kernels__refuse_a_variable_that_came_too_late() -> None:
    program = (
        "import os, triton; os.environ['TRITON_INTERPRET'] = '1'\n"
        "import torch, kernels\n"
        "g = torch.ones(1, 4)\n"
        "kernels.surgery(g, g, g, align=1.0, backend='triton')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stderr.splitlines()[-1].startswith("ImportError: TRITON_INTERPRET: changed after triton")
