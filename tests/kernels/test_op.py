"""The operator as PyTorch sees it: eager, hooks, compile, export, aliasing, refusals, cost of a call."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels import surgery, surgery_affine

SETTINGS = (0.2, 1e-6, False, False, False)


def draw(rows: int = 4, width: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + width)
    shapes = ((rows, width), (width,), (rows,), (width,), (rows,))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize("stats", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_opcheck__accepts_both_operators(affine: bool, stats: bool) -> None:
    import kernels.gradient_surgery  # registers

    assert kernels.gradient_surgery
    grad, w_text, r_text, w_image, r_image = draw()
    inputs = (grad, w_text, w_image, r_text, r_image) if affine else (grad, grad + 1, grad - 1, None, None)
    torch.library.opcheck(torch.ops.dgsnet.surgery.default, (*inputs, *SETTINGS))
    targets = (torch.empty(4, 8), torch.empty(4, 3) if stats else None)
    torch.library.opcheck(torch.ops.dgsnet.surgery_out.default, (*inputs, *SETTINGS, *targets))


def test_compile__takes_the_whole_graph() -> None:
    def step(grad: Tensor, w_text: Tensor, r_text: Tensor, w_image: Tensor, r_image: Tensor) -> Any:
        scaled, stats = grad * 2, torch.empty(grad.shape[0], 3)
        plain = surgery_affine(scaled, w_text, r_text, w_image, r_image, align=0.2)
        surgery_affine(scaled, w_text, r_text, w_image, r_image, align=0.2, out=scaled, stats=stats)
        return plain + 1, scaled, stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's remarks about this machine
        compiled = torch.compile(step, fullgraph=True)(*draw())
    for got, want in zip(compiled, step(*draw()), strict=True):
        torch.testing.assert_close(got, want)


def test_export__keeps_the_operator_as_one_node() -> None:
    class Module(nn.Module):
        def forward(
            self, grad: Tensor, w_text: Tensor, r_text: Tensor, w_image: Tensor, r_image: Tensor
        ) -> Tensor:
            return surgery_affine(grad, w_text, r_text, w_image, r_image, align=0.2) * 2

    batch = torch.export.Dim("batch")
    dynamic = ({0: batch}, None, {0: batch}, None, {0: batch})
    exported = torch.export.export(Module(), draw(), dynamic_shapes=dynamic)
    nodes = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert nodes.count(torch.ops.dgsnet.surgery.default) == 1
    other = draw(rows=9)
    torch.testing.assert_close(exported.module()(*other), Module()(*other))


def test_hook__replaces_the_gradient() -> None:
    grad, *constants = draw()
    feature = torch.zeros(4, 8, requires_grad=True)
    feature.register_hook(lambda arriving: surgery_affine(arriving, *constants, align=0.2))
    # The gradient of a sum arrives expanded, with strides of 0.
    (feature.sum() * 3).backward()
    want = surgery_affine(torch.full((4, 8), 3.0), *constants, align=0.2)
    torch.testing.assert_close(feature.grad, want)
    assert grad.shape == want.shape


def test_result__is_a_constant_even_for_trainable_weights() -> None:
    grad, w_text, r_text, w_image, r_image = draw()
    got = surgery_affine(grad, w_text.requires_grad_(), r_text, w_image, r_image, align=0.2)
    assert not got.requires_grad
    with pytest.raises(ValueError, match=r"grad: found a tensor that requires grad.*detach"):
        surgery_affine(grad.requires_grad_(), w_text, r_text, w_image, r_image, align=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("width", [1, 2, 3, 255, 513, 1000, 4095, 4096])
def test_surgery_affine__takes_an_empty_batch_and_any_width(width: int, dtype: torch.dtype) -> None:
    grad, *constants = draw(3, width)
    full = surgery_affine(grad.to(dtype), *constants, align=0.2)
    empty = surgery_affine(
        grad[:0].to(dtype), constants[0], constants[1][:0], constants[2], constants[3][:0], align=0.2
    )
    assert full.shape == (3, width)
    assert full.isfinite().all()
    assert (empty.shape, empty.dtype) == ((0, width), dtype)


def test_out__bumps_the_version_so_that_autograd_notices() -> None:
    grad, *constants = draw()
    leaf = torch.ones(4, 8, requires_grad=True)
    product = leaf * grad
    surgery_affine(grad, *constants, align=0.2, out=grad)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_out__takes_strides_of_its_own() -> None:
    grad, *constants = draw()
    room = torch.full((8, 8), torch.nan).t()[:, ::2]
    stats = torch.empty(8, 3)
    constants[1] = constants[3] = torch.ones(8)
    got = surgery_affine(torch.cat([grad, grad])[:, :4], *_cut(constants), align=0.2, out=room, stats=stats)
    want = surgery_affine(torch.cat([grad, grad])[:, :4], *_cut(constants), align=0.2)
    assert got is room
    assert torch.equal(room, want)


def _cut(constants: list[Tensor]) -> list[Tensor]:
    return [constants[0][:4], constants[1], constants[2][:4], constants[3]]


def test_out__refuses_memory_that_it_would_overwrite_too_early() -> None:
    room, (_, *constants) = torch.randn(5, 8), draw()
    with pytest.raises(ValueError, match="out: found memory of an input"):
        surgery_affine(room[:4], *constants, align=0.2, out=room[1:])
    g_text = torch.randn(4, 8)
    with pytest.raises(ValueError, match="out: found memory of an input"):
        surgery(room[:4], g_text, g_text, align=0.2, out=g_text)


@pytest.mark.parametrize("strides", [(0, 1), (1, 0), (1, 1), (7, 1), (1, 3)], ids=str)
def test_out__refuses_two_elements_in_one_place(strides: tuple[int, int]) -> None:
    grad, *constants = draw()
    with pytest.raises(ValueError, match=r"out: found strides .* expected one element per place in memory"):
        surgery_affine(grad, *constants, align=0.2, out=torch.empty(64).as_strided((4, 8), strides))


@pytest.mark.parametrize("name", ["grad", "w_text", "r_image", "out"])
def test_stats__need_memory_of_their_own(name: str) -> None:
    tensors = dict(zip(("grad", "w_text", "r_text", "w_image", "r_image"), draw(8, 32), strict=True))
    tensors["out"] = torch.empty(8, 32)
    room = torch.zeros(tensors[name].numel() + 24)
    tensors[name] = room[: tensors[name].numel()].view(tensors[name].shape)
    stats = room[tensors[name].numel() - 1 :][:24].view(8, 3)
    with pytest.raises(ValueError, match="stats: found memory of another argument"):
        surgery_affine(**tensors, align=0.2, stats=stats)


@pytest.mark.parametrize("name", ["out", "stats"])
def test_out_and_stats__are_no_part_of_a_graph(name: str) -> None:
    """Written into without a trace on a GPU, they would hand on the gradient of what they held before."""
    grad, *constants = draw()
    leaf = torch.ones(4, 8 if name == "out" else 3, requires_grad=True)
    with pytest.raises(ValueError, match=rf"{name}: found a tensor that requires grad.*detach"):
        surgery_affine(grad, *constants, align=0.2, **{name: leaf * 1})


@pytest.mark.parametrize("order", ["released", "paper"])
def test_stats__by_hand(order: str) -> None:
    grad, g_text, g_image = (
        torch.tensor([[3.0, 4.0]]),
        torch.tensor([[2.0, -7.0]]),
        torch.tensor([[-10.0, 5.0]]),
    )
    stats = torch.empty(1, 3)
    surgery(grad, g_text, g_image, align=0.5, eps=0.0, order=order, stats=stats)
    # help = (-5, 0), h = (1, 0); what is projected is (-2, 4) as released, (3, 4) in the paper's order.
    assert stats.tolist() == ([[20.0, -2.0, 25.0]] if order == "released" else [[25.0, 3.0, 25.0]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backend": "triton"}, ValueError, "TRITON_INTERPRET=1 set before"),
        ({"backend": "cuda"}, ValueError, "backend: found 'cuda'"),
        ({"eps": float("nan")}, ValueError, "eps: found nan"),
        ({"align": float("inf")}, ValueError, "align: found inf"),
        ({"w_text": torch.zeros(8, dtype=torch.float64)}, TypeError, "w_text: found torch.float64"),
        ({"r_text": torch.zeros(3)}, ValueError, r"r_text: found shape \(3,\), expected \(4,\)"),
        ({"grad": torch.zeros(4, 8, dtype=torch.int32)}, TypeError, "grad: found torch.int32"),
        ({"grad": torch.zeros(4, 0)}, ValueError, "grad: found shape"),
        ({"grad": torch.zeros(4, 8).double(), "backend": "triton"}, TypeError, "float64.*backend='torch'"),
        ({"w_image": torch.zeros(8, device="meta")}, ValueError, "w_image: found on meta"),
        ({"out": torch.zeros(4, 8).half()}, TypeError, "out: found torch.float16"),
        ({"stats": torch.zeros(4, 2)}, ValueError, "stats: found shape"),
        ({"stats": torch.zeros(3, 4).t()}, ValueError, "stats: found strides"),
        ({"grad": None}, TypeError, "grad: found NoneType, expected a tensor"),
        ({"r_text": [0.0] * 4}, TypeError, "r_text: found list, expected a tensor"),
        ({"out": [0.0]}, TypeError, "out: found list, expected a tensor"),
        ({"grad": torch.zeros(4, 8).to_sparse()}, TypeError, "grad: found torch.sparse_coo, expected"),
        ({"w_text": torch.zeros(8).to_sparse()}, TypeError, "w_text: found torch.sparse_coo, expected"),
        ({"align": "0.2"}, TypeError, "align: found '0.2', expected a number"),
        ({"eps": None}, TypeError, "eps: found None, expected a number"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_surgery_affine__names_what_it_refuses(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    names = ("grad", "w_text", "r_text", "w_image", "r_image")
    with pytest.raises(error, match=message) as refused:
        surgery_affine(**{**dict(zip(names, draw(), strict=True)), "align": 0.2, **change})
    assert "\n" not in str(refused.value)


def test_backend__says_when_triton_is_not_installed() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, kernels\n"
        "g = torch.ones(2, 4)\n"
        "kernels.surgery(g, g, g, align=1.0)\n"
        "kernels.surgery(g, g, g, align=1.0, backend='triton')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ImportError: triton: not installed; pip install triton")


def test_call__costs_little_before_any_launch() -> None:
    """Checks, dispatch and an empty result: the launch comes on top, and 40 us is what both may take."""
    grad, w_text, r_text, w_image, r_image = draw(0, 768)
    best = float("inf")
    for _ in range(60):
        start = time.perf_counter()
        for _ in range(100):
            surgery_affine(grad, w_text, r_text, w_image, r_image, align=0.2)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 25e-6
