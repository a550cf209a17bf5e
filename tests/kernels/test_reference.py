"""The reference surgery against golden vectors, autograd in float64 and values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import surgery, surgery_affine

DATA = Path(__file__).parent.parent / "data"
GOLDEN = sorted(DATA.glob("surgery_*.npz"))
# Relative Frobenius error per dtype; inputs are cast first and the reference sees the cast inputs.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def load(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("order", ["released", "paper"])
def test_surgery__matches_the_golden_vectors(path: Path, order: str) -> None:
    golden = load(path)
    got = surgery(
        golden["released_grad_task"],
        golden["released_g_text"],
        golden["released_g_image"],
        align=0.2 / len(golden["y"]),
        order=order,
    )
    assert relative_error(got, golden[f"{order}_grad_f"]) < 1e-10


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_surgery_affine__matches_the_golden_vectors(path: Path) -> None:
    golden = load(path)
    rows = len(golden["y"])
    r_text = (torch.sigmoid(golden["f_x"] @ golden["w_x"] + golden["b_x"]) - golden["y"]) / rows
    r_image = (torch.sigmoid(golden["f_t"] @ golden["w_t"] + golden["b_t"]) - golden["y"]) / rows
    got = surgery_affine(
        golden["released_grad_task"], golden["w_x"], r_text, golden["w_t"], r_image, align=0.2 / rows
    )
    assert relative_error(got, golden["released_grad_f"]) < 1e-10


@pytest.mark.parametrize("harm", ["positive", "full"])
@pytest.mark.parametrize("order", ["released", "paper"])
@pytest.mark.parametrize("dtype", list(LIMITS), ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 63), (32, 513), (5, 1000)])
def test_surgery_affine__agrees_with_the_general_form_in_every_dtype(
    rows: int, width: int, dtype: torch.dtype, order: str, harm: str
) -> None:
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    grad = torch.randn(rows, width, generator=generator).to(dtype)
    w_text, w_image = (torch.randn(width, generator=generator).to(dtype) for _ in range(2))
    r_text, r_image = (torch.randn(rows, generator=generator).to(dtype) for _ in range(2))
    # Strided input must change nothing.
    strided = torch.stack([grad, grad], dim=2)[:, :, 0]
    got = surgery_affine(strided, w_text, r_text, w_image, r_image, align=0.2, order=order, harm=harm)
    want = surgery(
        grad.double(),
        r_text.double()[:, None] * w_text.double(),
        r_image.double()[:, None] * w_image.double(),
        align=0.2,
        order=order,
        harm=harm,
    )
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert float((got.double() - want).norm()) <= LIMITS[dtype] * float(grad.double().norm() + 1)


def test_surgery__by_hand() -> None:
    grad = torch.tensor([[3.0, 4.0]])
    g_text = torch.tensor([[2.0, -7.0]])  # relu leaves the first axis: h = (1, 0)
    g_image = torch.tensor([[-10.0, 5.0]])  # min leaves (-10, 0)
    released = surgery(grad, g_text, g_image, align=0.5, eps=0.0)
    paper = surgery(grad, g_text, g_image, align=0.5, eps=0.0, order="paper")
    assert released.tolist() == [[0.0, 4.0]]
    assert paper.tolist() == [[-5.0, 4.0]]


def test_surgery__no_harm_leaves_the_gradient_alone() -> None:
    grad = torch.tensor([[3.0, 4.0]])
    zero = torch.zeros_like(grad)
    assert torch.equal(surgery(grad, zero, zero, align=1.0, eps=0.0), grad)
    assert torch.equal(surgery(grad, -torch.ones_like(grad), zero, align=1.0, eps=0.0), grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("order", ["released", "paper"])
@pytest.mark.parametrize("where", ["grad", "g_text", "g_image"])
def test_surgery__a_non_finite_row_stays_in_its_row(where: str, order: str, value: float) -> None:
    tensors = {name: torch.randn(3, 8) for name in ("grad", "g_text", "g_image")}
    clean = surgery(**tensors, align=0.1, order=order)
    tensors[where][1, 2] = value
    got = surgery(**tensors, align=0.1, order=order)
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert not got[1].isfinite().any()


def test_surgery__writes_into_out_even_when_it_is_grad() -> None:
    grad, g_text, g_image = (torch.randn(4, 6) for _ in range(3))
    want = surgery(grad, g_text, g_image, align=0.3)
    got = surgery(grad, g_text, g_image, align=0.3, out=grad)
    assert got is grad
    assert torch.equal(grad, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "other"}, "order: found 'other'"),
        ({"harm": "negative"}, "harm: found 'negative'"),
        ({"backend": "triton"}, "backend: found 'triton'"),
        ({"eps": -1.0}, "eps: found -1.0"),
        ({"g_text": torch.zeros(2, 3)}, "g_text: found shape"),
    ],
)
def test_surgery__names_what_it_refuses(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "grad": torch.zeros(2, 4), "g_text": torch.zeros(2, 4), "g_image": torch.zeros(2, 4), "align": 0.1
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        surgery(**(arguments | change))  # type: ignore[arg-type]


def test_kernels__stays_below_the_version_that_transformers_probes_for() -> None:
    import kernels

    assert tuple(int(part) for part in kernels.__version__.split(".")) < (0, 2, 0)


@pytest.mark.parametrize("harm", ["positive", "full"])
@pytest.mark.parametrize("order", ["released", "paper"])
@pytest.mark.parametrize("seed", range(5))
def test_surgery__agrees_with_autograd_on_random_heads(seed: int, order: str, harm: str) -> None:
    """Two losses, autograd in float64, and the projection written as a matrix."""
    torch.manual_seed(seed)
    rows, width = int(torch.randint(1, 40, ())), int(torch.randint(2, 900, ()))
    target = torch.randint(0, 2, (rows,)).double()
    align, eps = float(torch.rand(())), (0.0, 1e-6, 1e-2)[seed % 3]
    grad = torch.randn(rows, width).double()
    gradients, weights, residuals = [], [], []
    for _ in range(2):
        feature = torch.randn(rows, width).double().requires_grad_()
        weight, bias = torch.randn(width).double() / width**0.5, torch.randn(()).double()
        logit = feature @ weight + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, target)
        gradients.append(torch.autograd.grad(loss, feature)[0])
        weights.append(weight)
        residuals.append(((torch.sigmoid(logit) - target) / rows).detach())
    g_text, g_image = gradients
    want = []
    for g, text, image in zip(grad, g_text, g_image, strict=True):
        kept = torch.where(text > 0, text, 0.0) if harm == "positive" else text
        h = kept / (kept.norm() + eps)
        projector = torch.eye(width, dtype=torch.float64) - torch.outer(h, h)
        added = align * torch.where(image < 0, image, 0.0)
        want.append(projector @ (g + added) if order == "released" else projector @ g + added)
    options = {"align": align, "order": order, "harm": harm, "eps": eps}
    general = surgery(grad, g_text, g_image, **options)
    affine = surgery_affine(grad, weights[0], residuals[0], weights[1], residuals[1], **options)
    assert relative_error(general, torch.stack(want)) < 1e-10
    assert relative_error(affine, torch.stack(want)) < 1e-10


@pytest.mark.parametrize("residual", [1e-12, 1e-25, 1e-37])
def test_surgery__keeps_the_exact_direction_of_a_confident_head(residual: float) -> None:
    """With eps = 0 it is the unit direction, also where the squares of the gradient are 0 in float32."""
    torch.manual_seed(0)
    grad, weight = torch.randn(3, 64), torch.randn(64)
    r_text = torch.tensor([residual, -residual, 0.0])
    options = {"align": 0.0, "eps": 0.0}
    want = surgery_affine(grad.double(), weight.double(), r_text.sign().double(), weight, r_text, **options)
    affine = surgery_affine(grad, weight, r_text, weight, r_text, **options)
    assert relative_error(affine, want) < 1e-6
    if residual > 1e-30:
        # Below that the product is a subnormal number and has lost its digits before the call.
        general = surgery(grad, r_text[:, None] * weight, torch.zeros(3, 64), **options)
        assert relative_error(general, want) < 1e-6


@pytest.mark.parametrize("harm", ["positive", "full"])
@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(torch.float32, -145), (torch.float32, 100), (torch.float64, -1070), (torch.float64, 700)],
    ids=str,
)
def test_surgery__direction_has_no_size(dtype: torch.dtype, exponent: int, harm: str) -> None:
    """With eps = 0 a gradient of whatever size, subnormal or vast, gives the same unit direction."""
    torch.manual_seed(0)
    grad = torch.randn(5, 40, dtype=dtype)
    g_text = torch.randint(-7, 8, (5, 40)).to(dtype)  # few digits, so that scaling loses none
    options = {"align": 0.0, "eps": 0.0, "harm": harm}
    got = surgery(grad, g_text * 2.0**exponent, torch.zeros_like(grad), **options)
    assert relative_error(got, surgery(grad, g_text, torch.zeros_like(grad), **options)) < LIMITS[dtype]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("order", ["released", "paper"])
@pytest.mark.parametrize("which", [0, 2, 4])
def test_surgery_affine__a_non_finite_value_spoils_its_row_only(which: int, order: str, value: float) -> None:
    torch.manual_seed(1)
    inputs = [torch.randn(3, 8), torch.randn(8), torch.randn(3), torch.randn(8), torch.randn(3)]
    clean = surgery_affine(*inputs, align=0.1, order=order)
    inputs[which][(1, 2) if which == 0 else 1] = value
    got = surgery_affine(*inputs, align=0.1, order=order)
    assert not got[1].isfinite().any()
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
