"""The truth about gradient surgery in plain PyTorch: short enough to be obviously right.

Half precisions are computed in float32, float64 stays float64; the result has the gradient's dtype.
Source: arXiv 2511.13108, prior alignment and orthogonal suppression.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit_harm(g_text: Tensor, *, full: bool, eps: float | Tensor) -> Tensor:
    """Returns the harmful direction h, one row per sample.

    h = relu(g_text) / (|relu(g_text)| + eps), or g_text / (|g_text| + eps) if ``full``.
    A row of norm 0 gives h = 0, also with eps = 0.

    Args:
        g_text: gradient of the text loss at the text feature, float32 or float64 ``[B, D]``.
        full: keep the negative part too.
        eps: added to the norm, a number or ``[B, 1]``; 0 means the exact unit direction.
    """
    kept = g_text if full else g_text.clamp(min=0)
    # Measured in units of its largest element: the squares of a confident head's 1e-30 are 0 in float32.
    unit = kept.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)
    kept = kept / unit
    length = torch.linalg.vector_norm(kept, dim=1, keepdim=True) + eps / unit
    return kept / torch.where(length == 0, 1, length)


def operate(
    g: Tensor, h: Tensor, help_term: Tensor, poison: Tensor, *, paper: bool, stats: Tensor | None
) -> Tensor:
    """Adds the help term and projects off h, in the named order.

    released: G = g + help, then G - <G, h> h.
    paper:    G = g - <g, h> h, then G + help.

    Args:
        g: gradient that arrives at the student feature, float32 or float64 ``[B, D]``.
        h: harmful direction, ``[B, D]``.
        help_term: align * min(g_image, 0), ``[B, D]``.
        poison: 0, and NaN where an input of the row is not finite, ``[B, 1]``: clipping would hide it.
        paper: the paper's order.
        stats: float32 ``[B, 3]``, receives |G|^2, <G, h> and |help|^2 with G as it is before the projection.
    """
    operand = g if paper else g + help_term
    share = (operand * h).sum(dim=1, keepdim=True) + poison
    result = operand - share * h
    if stats is not None:
        stats[:, 0] = operand.square().sum(dim=1)
        stats[:, 1] = share[:, 0]
        stats[:, 2] = help_term.square().sum(dim=1)
    return result + help_term if paper else result


def surgery_reference(
    grad: Tensor,
    g_text: Tensor,
    g_image: Tensor,
    *,
    align: float,
    eps: float,
    paper: bool = False,
    full: bool = False,
    stats: Tensor | None = None,
) -> Tensor:
    """Returns the operated gradient, ``[B, D]`` in grad's dtype, contiguous."""
    compute = torch.float64 if grad.dtype == torch.float64 else torch.float32
    g, g_text, g_image = (tensor.to(compute) for tensor in (grad, g_text, g_image))
    h = unit_harm(g_text, full=full, eps=eps)
    help_term = align * g_image.clamp(max=0)
    poison = (0 * g_text + 0 * g_image).sum(dim=1, keepdim=True)
    return operate(g, h, help_term, poison, paper=paper, stats=stats).to(grad.dtype).contiguous()


def surgery_affine_reference(
    grad: Tensor,
    w_text: Tensor,
    r_text: Tensor,
    w_image: Tensor,
    r_image: Tensor,
    *,
    align: float,
    eps: float,
    paper: bool = False,
    full: bool = False,
    stats: Tensor | None = None,
) -> Tensor:
    """The same for affine one-logit heads, where g_text[b] = r_text[b] w_text and g_image likewise."""
    compute = torch.float64 if grad.dtype == torch.float64 else torch.float32
    g, w_text, w_image = (tensor.to(compute) for tensor in (grad, w_text, w_image))
    r_text, r_image = (tensor.to(compute)[:, None] for tensor in (r_text, r_image))
    # Direction of sign(r) w, with eps / |r| for eps: dividing both by |r| keeps the digits of a tiny r.
    fade = eps / r_text.abs() if eps else 0.0
    h = unit_harm(r_text.sign() * w_text, full=full, eps=fade)
    help_term = align * (r_image * w_image).clamp(max=0)
    poison = 0 * r_text + 0 * r_image
    return operate(g, h, help_term, poison, paper=paper, stats=stats).to(grad.dtype).contiguous()
