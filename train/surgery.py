"""Where the gradient at the student feature is captured and handed to the surgery operator."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import surgery_affine
from train.config import SurgeryConfig
from train.model import DgsNet


def residual(logit: Tensor, target: Tensor, batch: int) -> Tensor:
    """Returns (sigmoid(z) - y) / B per sample, ``[B]``, in the form that keeps its digits.

    sigmoid(z) for y = 0 and -sigmoid(-z) for y = 1: 1 - sigmoid(z) would round to 0 for confident heads.
    """
    sign = 1 - 2 * target
    return sign * torch.sigmoid(sign * logit) / batch


def operate_on(
    feature: Tensor,
    model: DgsNet,
    *,
    text_logit: Tensor,
    teacher_logit: Tensor,
    target: Tensor,
    batch: int,
    config: SurgeryConfig,
) -> None:
    """Replaces the gradient that will arrive at ``feature`` by the operated one.

    L_help never enters autograd: the operator adds align * min(g_image, 0), with align = lambda / B as
    released or lambda per sample.

    Args:
        feature: student feature f, float32 ``[b, D]``, outside autocast, part of the graph.
        model: for the weights of the text and teacher heads.
        text_logit: h_txt(f_x), float32 ``[b]``.
        teacher_logit: h_t(f_t), float32 ``[b]``.
        target: y, float32 ``[b]``, 0 real and 1 generated.
        batch: the effective batch B, which divides every loss.
        config: order, harm, align and the epsilons.

    Source: arXiv 2511.13108, prior alignment and orthogonal suppression.
    """
    r_text = residual(text_logit.detach(), target, config.eps_batch or batch)
    r_image = residual(teacher_logit.detach(), target, batch)
    align = config.align / batch if config.align_reduction == "released" else config.align
    w_text = model.head_text.weight.detach()[0].clone()
    w_image = model.head_teacher.weight.detach()[0]

    def replace(grad: Tensor) -> Tensor:
        return surgery_affine(
            grad, w_text, r_text, w_image, r_image,
            align=align, order=config.order, harm=config.harm, eps=config.eps,
        )  # fmt: skip

    feature.register_hook(replace)
