"""The public operator: checks its arguments, then runs the backend that was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gradient_surgery.reference import surgery_affine_reference, surgery_reference

ORDERS = ("released", "paper")
HARMS = ("positive", "full")
BACKENDS = ("auto", "torch")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


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
) -> Tensor:
    """Aligns a gradient with the image teacher and removes the part along the text teacher's gradient.

    Args:
        grad: gradient that arrives at the student feature, float16/bfloat16/float32/float64 ``[B, D]``.
        g_text: gradient of the text loss at the text feature, ``[B, D]``, same device.
        g_image: gradient of the teacher's loss at its image feature, ``[B, D]``, same device.
        align: factor of min(g_image, 0); holds lambda and the reduction (lambda / B as released).
        order: "released" adds the help term, then projects; "paper" projects, then adds.
        harm: "positive" takes relu(g_text) as the direction, "full" takes g_text.
        eps: added to the direction's norm; 0 means the exact unit direction.
        backend: "torch", or "auto", which is "torch".
        out: tensor like ``grad`` that receives the result; may be ``grad`` itself.

    Returns:
        ``[B, D]`` in grad's dtype on its device, contiguous unless ``out`` is given.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes, devices or settings that do not fit.

    Source: arXiv 2511.13108, prior alignment and orthogonal suppression.
    """
    _check_settings(grad, order, harm, eps, backend, out)
    for name, tensor in (("g_text", g_text), ("g_image", g_image)):
        _check_tensor(name, tensor, grad, tuple(grad.shape))
    result = surgery_reference(grad, g_text, g_image, align=align, order=order, harm=harm, eps=eps)
    return result if out is None else out.copy_(result)


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
) -> Tensor:
    """``surgery`` in closed form for affine one-logit heads: g_text[b] = r_text[b] * w_text, and so on.

    Args:
        grad: gradient that arrives at the student feature, ``[B, D]``.
        w_text: weight of the text head, ``[D]``.
        r_text: residual (sigmoid(z_text) - y) / B per sample, ``[B]``; never scaled by a loss scale.
        w_image: weight of the teacher head, ``[D]``.
        r_image: residual (sigmoid(z_teacher) - y) / B per sample times the loss scale, ``[B]``.
        align: as in ``surgery``, and so are the next five.
        order: "released" or "paper".
        harm: "positive" or "full".
        eps: 0 means the exact unit direction.
        backend: "torch" or "auto".
        out: receives the result; may be ``grad`` itself.

    Returns:
        ``[B, D]`` in grad's dtype on its device, contiguous unless ``out`` is given.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: shapes, devices or settings that do not fit.
    """
    _check_settings(grad, order, harm, eps, backend, out)
    rows, width = grad.shape
    for name, tensor, shape in (
        ("w_text", w_text, (width,)),
        ("r_text", r_text, (rows,)),
        ("w_image", w_image, (width,)),
        ("r_image", r_image, (rows,)),
    ):
        _check_tensor(name, tensor, grad, shape)
    result = surgery_affine_reference(
        grad, w_text, r_text, w_image, r_image, align=align, order=order, harm=harm, eps=eps
    )
    return result if out is None else out.copy_(result)


def _check_settings(
    grad: Tensor, order: str, harm: str, eps: float, backend: str, out: Tensor | None
) -> None:
    for name, value, allowed in (
        ("order", order, ORDERS),
        ("harm", harm, HARMS),
        ("backend", backend, BACKENDS),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: found {value!r}, expected one of {allowed}")
    if not eps >= 0:
        raise ValueError(f"eps: found {eps}, expected 0 or more")
    if grad.dtype not in DTYPES:
        raise TypeError(f"grad: found {grad.dtype}, expected one of {DTYPES}")
    if grad.ndim != 2:
        raise ValueError(f"grad: found {grad.ndim} dimensions, expected 2 (batch, width)")
    if out is not None:
        _check_tensor("out", out, grad, tuple(grad.shape))
        if out.dtype != grad.dtype:
            raise TypeError(f"out: found {out.dtype}, expected grad's {grad.dtype}")


def _check_tensor(name: str, tensor: Tensor, grad: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.device != grad.device:
        raise ValueError(f"{name}: found on {tensor.device}, expected grad's device {grad.device}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: found {tensor.dtype}, expected one of {DTYPES}")
