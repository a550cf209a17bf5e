"""The truth about gradient surgery in plain PyTorch: short enough to be obviously right.

Half precisions are computed in float32, float64 stays float64; the result has the gradient's dtype.
Source: arXiv 2511.13108, prior alignment and orthogonal suppression.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit_harm(g_text: Tensor, *, harm: str, eps: float) -> Tensor:
    """Returns the harmful direction h, one row per sample.

    h = relu(g_text) / (|relu(g_text)| + eps) for harm="positive", g_text / (|g_text| + eps) for "full".
    A row of norm 0 gives h = 0, also with eps = 0.

    Args:
        g_text: gradient of the text loss at the text feature, float32 or float64 ``[B, D]``.
        harm: "positive" or "full".
        eps: added to the norm; 0 means the exact unit direction.
    """
    kept = g_text.clamp(min=0) if harm == "positive" else g_text
    norm = torch.linalg.vector_norm(kept, dim=1, keepdim=True)
    length = norm + eps
    return kept / torch.where(length == 0, torch.ones_like(length), length)


def surgery_reference(
    grad: Tensor, g_text: Tensor, g_image: Tensor, *, align: float, order: str, harm: str, eps: float
) -> Tensor:
    """Returns the operated gradient, ``[B, D]`` in grad's dtype, contiguous.

    released: G = grad + align * min(g_image, 0), then G - <G, h> h.
    paper:    G = grad - <grad, h> h, then G + align * min(g_image, 0).
    """
    compute = torch.float64 if grad.dtype == torch.float64 else torch.float32
    g = grad.to(compute)
    h = unit_harm(g_text.to(compute), harm=harm, eps=eps)
    help_term = align * g_image.to(compute).clamp(max=0)
    if order == "released":
        g = g + help_term
        g = g - (g * h).sum(dim=1, keepdim=True) * h
    else:
        g = g - (g * h).sum(dim=1, keepdim=True) * h
        g = g + help_term
    return g.to(grad.dtype).contiguous()


def surgery_affine_reference(
    grad: Tensor,
    w_text: Tensor,
    r_text: Tensor,
    w_image: Tensor,
    r_image: Tensor,
    *,
    align: float,
    order: str,
    harm: str,
    eps: float,
) -> Tensor:
    """The same for affine one-logit heads, where g_text[b] = r_text[b] w_text and g_image likewise."""
    compute = torch.float64 if grad.dtype == torch.float64 else torch.float32
    g_text = r_text.to(compute)[:, None] * w_text.to(compute)[None, :]
    g_image = r_image.to(compute)[:, None] * w_image.to(compute)[None, :]
    return surgery_reference(grad, g_text, g_image, align=align, order=order, harm=harm, eps=eps)
