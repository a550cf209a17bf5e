"""The public operator: registers with PyTorch, runs the back end that was asked for.

Two operators are registered, ``dgsnet::surgery`` (pure) and ``dgsnet::surgery_out`` (writes into its
arguments), so that eager mode, tensor hooks, torch.compile and torch.export all see one opaque node.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gradient_surgery.arguments import check_memory, check_settings, check_targets, check_tensor
from kernels.gradient_surgery.reference import surgery_affine_reference, surgery_reference


def surgery(
    grad: Tensor,
    g_text: Tensor,
    g_image: Tensor,
    *,
    align: float,
    order: str = "released",
    harm: str = "positive",
    eps: float = 1e-6,
    backend: str = "auto",
    out: Tensor | None = None,
    stats: Tensor | None = None,
) -> Tensor:
    """Aligns a gradient with the image teacher and removes the part along the text teacher's gradient.

    A row of the result is non-finite throughout where that row of an input is not finite. Everything but
    ``grad`` is a constant, and the operator itself is not differentiable.

    Args:
        grad: gradient that arrives at the student feature, float16/bfloat16/float32/float64 ``[B, D]``, any
            strides; sums are float32, float64 for float64.
        g_text: gradient of the text loss at the text feature, ``[B, D]``, same device, float32 or as grad.
        g_image: gradient of the teacher's loss at its image feature, likewise.
        align: factor of min(g_image, 0); holds lambda and the reduction (lambda / B as released).
        order: "released" adds the help term, then projects; "paper" projects, then adds.
        harm: "positive" takes relu(g_text) as the direction, "full" takes g_text.
        eps: added to the direction's norm; 0 means the exact unit direction, and none where the norm is 0.
        backend: "triton" (D up to 4096, not float64; on a CPU only under TRITON_INTERPRET=1), "torch" (the
            reference), or "auto": triton on CUDA, torch elsewhere and for float64.
        out: tensor like ``grad`` that receives the result; ``grad`` itself, or memory of its own.
        stats: float32 ``[B, 3]``, contiguous, receives |G|^2, <G, h> and |help|^2 of each row, G being what
            is projected (with the help term in the released order).

    Returns:
        ``[B, D]`` in grad's dtype on its device, contiguous unless ``out`` is given.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes, devices or settings that do not fit, or a back end that cannot run on this device.
        ImportError: triton is needed and not installed.

    Source: arXiv 2511.13108, prior alignment and orthogonal suppression.
    """
    triton = check_settings(grad, align, order, harm, eps, backend)
    check_tensor("g_text", g_text, grad, grad.shape)
    check_tensor("g_image", g_image, grad, grad.shape)
    return _call(
        grad, g_text, g_image, None, None,
        align, eps, order == "paper", harm == "full", triton, out, stats,
    )  # fmt: skip


def surgery_affine(
    grad: Tensor,
    w_text: Tensor,
    r_text: Tensor,
    w_image: Tensor,
    r_image: Tensor,
    *,
    align: float,
    order: str = "released",
    harm: str = "positive",
    eps: float = 1e-6,
    backend: str = "auto",
    out: Tensor | None = None,
    stats: Tensor | None = None,
) -> Tensor:
    """``surgery`` in closed form for affine one-logit heads: g_text[b] = r_text[b] * w_text, and so on.

    A weight that is not finite may spoil every row.

    Args:
        grad: gradient that arrives at the student feature, ``[B, D]``.
        w_text: weight of the text head, ``[D]``, float32 or as grad.
        r_text: residual (sigmoid(z_text) - y) / B per sample, ``[B]``; never scaled by a loss scale.
        w_image: weight of the teacher head, ``[D]``.
        r_image: residual (sigmoid(z_teacher) - y) / B per sample times the loss scale, ``[B]``.
        align: as in ``surgery``, and so are the rest.
        order: "released" or "paper".
        harm: "positive" or "full".
        eps: 0 means the exact unit direction.
        backend: "triton", "torch" or "auto".
        out: receives the result; may be ``grad`` itself.
        stats: receives |G|^2, <G, h> and |help|^2.

    Returns:
        ``[B, D]`` in grad's dtype on its device, contiguous unless ``out`` is given.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes, devices or settings that do not fit, or a back end that cannot run on this device.
        ImportError: triton is needed and not installed.
    """
    triton = check_settings(grad, align, order, harm, eps, backend)
    rows, width = grad.shape
    check_tensor("w_text", w_text, grad, (width,))
    check_tensor("r_text", r_text, grad, (rows,))
    check_tensor("w_image", w_image, grad, (width,))
    check_tensor("r_image", r_image, grad, (rows,))
    return _call(
        grad, w_text, w_image, r_text, r_image,
        align, eps, order == "paper", harm == "full", triton, out, stats,
    )  # fmt: skip


def _call(
    grad: Tensor, text: Tensor, image: Tensor, r_text: Tensor | None, r_image: Tensor | None,
    align: float, eps: float, paper: bool, full: bool, triton: bool,
    out: Tensor | None, stats: Tensor | None,
) -> Tensor:  # fmt: skip
    if out is None and stats is None:
        return _surgery(grad, text, image, r_text, r_image, align, eps, paper, full, triton)
    check_targets(grad, out, stats)
    if out is None:
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
    _surgery_out(grad, text, image, r_text, r_image, align, eps, paper, full, triton, out, stats)
    return out


def _run(
    grad: Tensor, text: Tensor, image: Tensor, r_text: Tensor | None, r_image: Tensor | None,
    align: float, eps: float, paper: bool, full: bool, triton: bool,
) -> Tensor:  # fmt: skip
    if triton:
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
        _launch(grad, text, image, r_text, r_image, out, None, align, eps, paper, full)
        return out
    return _refer(grad, text, image, r_text, r_image, None, align, eps, paper, full)


def _run_out(
    grad: Tensor, text: Tensor, image: Tensor, r_text: Tensor | None, r_image: Tensor | None,
    align: float, eps: float, paper: bool, full: bool, triton: bool,
    out: Tensor, stats: Tensor | None,
) -> None:  # fmt: skip
    check_memory(grad, (text, image, r_text, r_image), out, stats)
    if triton:
        _launch(grad, text, image, r_text, r_image, out, stats, align, eps, paper, full)
    else:
        out.copy_(_refer(grad, text, image, r_text, r_image, stats, align, eps, paper, full))
    torch.autograd.graph.increment_version((out,) if stats is None else (out, stats))


def _launch(
    grad: Tensor, text: Tensor, image: Tensor, r_text: Tensor | None, r_image: Tensor | None,
    out: Tensor, stats: Tensor | None, align: float, eps: float, paper: bool, full: bool,
) -> None:  # fmt: skip
    try:
        from kernels.gradient_surgery import triton_kernel
    except ModuleNotFoundError as err:
        raise ImportError("triton: not installed; pip install triton, or use backend='torch'") from err
    if not (grad.is_cuda or (triton_kernel.INTERPRETED and grad.device.type == "cpu")):
        raise ValueError(
            f"backend: found 'triton' for a tensor on {grad.device}, expected one on CUDA, or on a CPU with "
            "TRITON_INTERPRET=1 set before triton is imported: use backend='torch'"
        )
    rows, width = grad.shape
    if width > triton_kernel.MAX_WIDTH or rows > triton_kernel.MAX_ROWS:
        raise ValueError(
            f"grad: found shape {(rows, width)}, expected at most {triton_kernel.MAX_ROWS} rows of "
            f"{triton_kernel.MAX_WIDTH} for triton: use backend='torch'"
        )
    if rows:
        triton_kernel.launch(
            grad, text, image, r_text, r_image, out, stats, align=align, eps=eps, paper=paper, full=full
        )


def _refer(
    grad: Tensor, text: Tensor, image: Tensor, r_text: Tensor | None, r_image: Tensor | None,
    stats: Tensor | None, align: float, eps: float, paper: bool, full: bool,
) -> Tensor:  # fmt: skip
    if not grad.shape[0]:
        return torch.empty_like(grad, memory_format=torch.contiguous_format)
    with torch.no_grad():
        if r_text is None or r_image is None:
            return surgery_reference(
                grad, text, image, align=align, eps=eps, paper=paper, full=full, stats=stats
            )
        return surgery_affine_reference(
            grad, text, r_text, image, r_image, align=align, eps=eps, paper=paper, full=full, stats=stats
        )


# text and image are [B, D], or with residuals the weights [D] of affine heads.
_ARGUMENTS = (
    "Tensor grad, Tensor text, Tensor image, Tensor? r_text, Tensor? r_image, "
    "float align, float eps, bool paper, bool full, bool triton"
)
# A Library rather than torch.library.custom_op: 6 us a call instead of 13 (see the README).
_LIBRARY = torch.library.Library("dgsnet", "DEF")
for _schema, _kernel in (
    (f"surgery({_ARGUMENTS}) -> Tensor", _run),
    (f"surgery_out({_ARGUMENTS}, Tensor(a!) out, Tensor(b!)? stats) -> ()", _run_out),
):
    _name = _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    # The inputs are constants: without this line autograd would mark the result as requiring grad.
    _LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")


@torch.library.register_fake("dgsnet::surgery", lib=_LIBRARY)
def _shape(grad: Tensor, *_rest: object) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


@torch.library.register_fake("dgsnet::surgery_out", lib=_LIBRARY)
def _shape_out(*_arguments: object) -> None:
    return None


_surgery = torch.ops.dgsnet.surgery.default
_surgery_out = torch.ops.dgsnet.surgery_out.default
