"""The kernels on a CUDA device: numbers, offsets, hooks, compile, capture and builds."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import accuracy, surgery_affine

pytestmark = pytest.mark.gpu


def draw(rows: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows + width)
    shapes = ((rows, width), (width,), (rows,), (width,), (rows,))
    return [torch.randn(shape, generator=generator).to(dtype).cuda() for shape in shapes]


@pytest.mark.parametrize("width", [1, 2, 3, 63, 64, 512, 513, 768, 1000, 1024, 1280, 4095, 4096])
def test_kernels__agree_with_float64(width: int) -> None:
    outcomes = accuracy.sweep(
        accuracy.list_cases((width,), rows=(1, 33, 3001)), device="cuda", backend="triton"
    )
    assert [f"{o.case}: {p}" for o in outcomes for p in o.problems] == []
    assert len(outcomes) == 24


@pytest.mark.parametrize("order", ["released", "paper"])
def test_surgery_affine__gives_the_cpus_result_on_cuda(order: str) -> None:
    inputs = draw(32, 768)
    want = surgery_affine(*(t.cpu() for t in inputs), align=0.1, order=order)
    got = surgery_affine(*inputs, align=0.1, order=order)
    assert accuracy.relative_errors(got.cpu(), want)[0] < 1e-6


def test_auto__is_triton_on_cuda_and_torch_for_float64() -> None:
    from kernels.gradient_surgery import triton_kernel

    inputs = draw(8, 64)
    named = surgery_affine(*inputs, align=0.1, backend="triton")
    assert torch.equal(surgery_affine(*inputs, align=0.1), named)
    before = len(triton_kernel.surgery_affine_kernel.device_caches[torch.cuda.current_device()][0])
    surgery_affine(*(t.double() for t in inputs), align=0.1)
    assert len(triton_kernel.surgery_affine_kernel.device_caches[torch.cuda.current_device()][0]) == before


def test_surgery_affine__reaches_offsets_beyond_32_bits() -> None:
    """600,000 rows of 4096: the last ones lie past 2^31 elements, 5 GB on each side."""
    rows, width = 600_000, 4096
    if torch.cuda.mem_get_info()[0] < 14e9:
        pytest.skip("needs 14 GB of free GPU memory")
    grad = torch.zeros(rows, width, dtype=torch.float16, device="cuda")
    _, w_text, _, w_image, _ = draw(1, width)
    residual = torch.ones(rows, device="cuda")
    grad[-3:] = torch.randn(3, width, device="cuda")
    want = surgery_affine(grad[-3:], w_text, residual[-3:], w_image, residual[-3:], align=0.1)
    got = surgery_affine(grad, w_text, residual, w_image, residual, align=0.1)
    assert torch.equal(got[-3:], want)


def test_hook__and_compile_on_cuda() -> None:
    grad, *constants = draw(32, 768)
    want = surgery_affine(grad, *constants, align=0.1)
    feature = torch.zeros_like(grad, requires_grad=True)
    feature.register_hook(lambda arriving: surgery_affine(arriving, *constants, align=0.1))
    (feature * grad).sum().backward()
    torch.testing.assert_close(feature.grad, want)
    compiled = torch.compile(lambda g: surgery_affine(g, *constants, align=0.1) + 1, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's advice on TF32
        torch.testing.assert_close(compiled(grad), want + 1)
    torch.library.opcheck(
        torch.ops.dgsnet.surgery.default,
        (grad, constants[0], constants[2], constants[1], constants[3], 0.1, 1e-6, False, False, True),
    )


def test_surgery_affine__can_be_captured_in_a_graph() -> None:
    inputs = draw(64, 512)
    want = surgery_affine(*inputs, align=0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = surgery_affine(*inputs, align=0.1)
    inputs[0].mul_(2)
    graph.replay()
    assert not torch.equal(got, want)
    assert torch.equal(got, surgery_affine(*inputs, align=0.1))


def test_kernel__is_built_once_for_all_numbers() -> None:
    from kernels.gradient_surgery import triton_kernel

    surgery_affine(*draw(7, 320), align=0.1)
    cache = triton_kernel.surgery_affine_kernel.device_caches[torch.cuda.current_device()][0]
    before = len(cache)
    for rows, align, eps in ((1, 1, 0), (16, 0.5, 1e-6), (1000, -2.0, 1e-3)):
        surgery_affine(*draw(rows, 320), align=align, eps=eps)
    assert len(cache) == before


def test_bench__times_a_shape_and_writes_its_files(tmp_path: Path) -> None:
    arguments = ["bench", "--form", "affine", "--dtype", "fp32", "--batch", "256", "--width", "768"]
    arguments += ["--repeats", "5", "--json"]
    arguments += ["--json-file", str(tmp_path / "bench.json"), "--plot", str(tmp_path / "bench.svg")]
    done = subprocess.run(
        [sys.executable, "-m", "kernels", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert set(row["device_us"]) == {"ours", "eager", "compile", "copy"}
    assert all(0 < low <= median <= high for low, median, high in row["device_us"].values())
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(done.stdout)
    assert (tmp_path / "bench.svg").read_text().startswith("<svg")
