"""The Triton kernels run by Triton's interpreter on a CPU, in processes of their own, against float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
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
    # Three calls a case, all but those on an expanded gradient, which cannot be written over.
    assert 2 * result["cases"] < result["runs"] <= 3 * result["cases"]
    assert {"torch.float32", "torch.float16", "torch.bfloat16", *accuracy.LAYOUTS} <= set(result["covered"])
    assert {"released", "paper", "positive", "full"} <= set(result["covered"])


def test_kernels__interpreted_agree_with_float64(interpret: Child) -> None:
    assert_clean(interpret(SWEEP.format(widths=(1, 63, 512, 768, 1000))))


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(2, 3, 5, 7, 16, 31, 64, 127), (100, 257, 513, 1024, 1280), (4095, 4096)])
def test_kernels__interpreted_agree_with_float64_at_more_widths(
    interpret: Child, widths: tuple[int, ...]
) -> None:
    assert_clean(interpret(SWEEP.format(widths=widths)))


def test_kernels__reach_elements_beyond_32_bit_offsets(interpret: Child) -> None:
    errors = interpret(FAR_APART)
    assert len(errors) == 10
    assert max(errors) < accuracy.LIMITS[torch.float16]


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
