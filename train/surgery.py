"""Where the gradient at the student feature is captured and handed to the surgery operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kernels import surgery, surgery_affine
from train.config import SurgeryConfig
from train.model.detector import DgsNet

if TYPE_CHECKING:
    from train.recipes.base import Batch


def operate_on(
    feature: Tensor,
    model: DgsNet,
    batch: Batch,
    *,
    text_logit: Tensor,
    teacher_logit: Tensor,
    config: SurgeryConfig,
) -> dict[str, Tensor]:
    """Replaces the gradient that will arrive at ``feature`` by the operated one.

    L_help never enters autograd: the operator adds align * min(g_image, 0), with align = lambda / B as
    released or lambda per sample. The result is S times the true gradient: the gradient that arrives and
    g_image carry S, g_text never does, since only its direction counts and eps is measured against it.

    Args:
        feature: student feature f, float32 ``[b, D]``, outside autocast, part of the graph.
        model: for the weights of the text and teacher heads.
        batch: target, B, S and class weights.
        text_logit: h_txt(f_x), float32 ``[b]``.
        teacher_logit: h_t(f_t), float32 ``[b]``.
        config: order, harm, align and the epsilons.

    Returns:
        float32 scalars, sums over the samples that the backward pass fills in: ``task`` = |G_task|,
        ``removed`` = |<G, h> h| / |G|, ``help`` = |help| / |G_task|, ``direction`` = |h|; S divides out.

    Source: arXiv 2511.13108, prior alignment and orthogonal suppression.
    """
    r_text = batch.residual(text_logit, config.eps_batch or batch.size)
    r_image = batch.residual(teacher_logit, batch.size) * batch.scale
    align = config.align / batch.size if config.align_reduction == "released" else config.align
    w_image = model.head_teacher.weight.detach()[0]
    rules: dict[str, Any] = {"align": align, "order": config.order, "harm": config.harm, "eps": config.eps}
    sums = {name: feature.new_zeros(()) for name in ("task", "removed", "help", "direction")}
    if isinstance(model.head_text, nn.Linear):
        # The step that follows changes the weight in place, the hook must see it as it was.
        w_text = model.head_text.weight.detach()[0].clone()
        norm = _norm_of_affine(config, r_text, w_text)

        def operate(grad: Tensor, stats: Tensor) -> Tensor:
            return surgery_affine(grad, w_text, r_text, w_image, r_image, stats=stats, **rules)
    else:
        g_text = _text_gradient(model.head_text, batch.text_feature, r_text)
        norm = (g_text if config.harm == "full" else g_text.clamp(min=0)).norm(dim=1)

        def operate(grad: Tensor, stats: Tensor) -> Tensor:
            return surgery(grad, g_text, r_image[:, None] * w_image, stats=stats, **rules)

    def replace(grad: Tensor) -> Tensor:
        stats = grad.new_empty((len(grad), 3), dtype=torch.float32)
        result = operate(grad, stats)
        _add_up(sums, grad, stats, norm, config.eps, batch.scale)
        return result

    feature.register_hook(replace)
    return sums


def _text_gradient(head: nn.Module, text_feature: Tensor, r_text: Tensor) -> Tensor:
    """Returns g_text = dL_text/df_x, float32 ``[b, D]``, for a head of any shape."""
    leaf = text_feature.detach().requires_grad_()
    with torch.enable_grad():
        logit = head(leaf).squeeze(1)
    return torch.autograd.grad(logit, leaf, grad_outputs=r_text)[0]


def _norm_of_affine(config: SurgeryConfig, r_text: Tensor, w_text: Tensor) -> Tensor:
    """Returns n of each sample, the norm of the harmful direction before it is divided, ``[b]``."""
    if config.harm == "full":
        return r_text.abs() * w_text.norm()
    rising, falling = w_text.clamp(min=0).norm(), w_text.clamp(max=0).norm()
    return torch.where(r_text > 0, rising, falling) * r_text.abs()


def _add_up(
    sums: dict[str, Tensor], grad: Tensor, stats: Tensor, norm: Tensor, eps: float, scale: Tensor | float
) -> None:
    tiny = torch.finfo(torch.float32).tiny
    task = grad.norm(dim=1)
    direction = norm / (norm + eps).clamp(min=tiny)
    sums["task"] += (task / scale).sum()
    sums["removed"] += (stats[:, 1].abs() * direction / stats[:, 0].sqrt().clamp(min=tiny)).sum()
    sums["help"] += (stats[:, 2].sqrt() / task.clamp(min=tiny)).sum()
    sums["direction"] += direction.sum()
