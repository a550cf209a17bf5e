"""The two stages of DGS-Net: the teacher head on frozen features, then the student under surgery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce_with_logits

from runtime.console import Progress
from runtime.errors import GateFailedError
from train.config import OptimConfig, TrainConfig
from train.data.mosaics import MosaicSet
from train.model import DgsNet
from train.surgery import operate_on

Log = Callable[[dict[str, Any]], None]


def train_teacher_head(model: DgsNet, data: MosaicSet, config: TrainConfig, device: str, log: Log) -> None:
    """Stage 1: fits h_t by BCE on the frozen image features f_t; nothing else changes.

    Args:
        model: on ``device``; only ``head_teacher`` is updated.
        data: the training split.
        config: schedule and optimiser.
        device: "cpu" or a CUDA device.
        log: receives one record per step.

    Raises:
        GateFailedError: the loss or a trained weight is not finite.
    """
    optimiser = _adam(model.head_teacher.parameters(), config.optim)
    epochs = config.schedule.stage1_epochs
    with Progress("stage 1, teacher head", epochs * data.steps()) as progress:
        for step, (images, indices) in enumerate(_epochs(data, epochs)):
            target = data.labels[indices].to(device)
            feature = model.encode_teacher(images.to(device))
            loss = bce_with_logits(model.head_teacher(feature).squeeze(1), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            value = _finite(loss, data, indices, "stage 1")
            log({"stage": 1, "step": step, "loss_teacher": value})
            progress.advance(note=f"loss {value:.3f}")
    _check_trained(model, list(model.head_teacher.parameters()), "stage 1")


def train_student(
    model: DgsNet, data: MosaicSet, text_features: Tensor, config: TrainConfig, device: str, log: Log
) -> None:
    """Stage 2: trains LoRA, h_img and h_txt with L_img + L_text, the gradient at f operated on.

    The last batch of an epoch counts with its own size as B.

    Args:
        model: on ``device``, adapters attached, ``head_teacher`` trained; it is frozen here.
        data: the training split.
        text_features: f_x of every sample, float32 ``[N, D]`` on the CPU.
        config: surgery, schedule and optimiser.
        device: "cpu" or a CUDA device.
        log: receives one record per step.

    Raises:
        GateFailedError: the loss or a trained weight is not finite.
    """
    model.head_teacher.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = _adam(trained, config.optim)
    epochs, limit = config.schedule.stage2_epochs, config.schedule.stage2_steps
    total = epochs * data.steps()
    total = min(total, limit) if limit else total
    model.train()
    with Progress("stage 2, student under surgery", total) as progress:
        for step, (images, indices) in enumerate(_epochs(data, epochs)):
            if step == total:
                break
            images, target = images.to(device), data.labels[indices].to(device)
            record = student_step(model, images, text_features[indices].to(device), target, config)
            optimiser.zero_grad()
            record["loss"].backward()
            optimiser.step()
            value = _finite(record["loss"], data, indices, "stage 2")
            log({"stage": 2, "step": step} | {k: float(v.detach()) for k, v in record.items()})
            progress.advance(note=f"loss {value:.3f}")
    _check_trained(model, trained, "stage 2")
    model.eval()


def student_step(
    model: DgsNet, images: Tensor, text_feature: Tensor, target: Tensor, config: TrainConfig
) -> dict[str, Tensor]:
    """Returns the losses of one batch, with surgery set up for the backward pass of ``loss``.

    Args:
        model: in train mode.
        images: mosaics, uint8 ``[b, 224, 224, 3]``.
        text_feature: f_x, float32 ``[b, D]``.
        target: y, float32 ``[b]``.
        config: for the surgery settings.

    Returns:
        scalars ``loss`` (= ``loss_image`` + ``loss_text``), ``loss_image``, ``loss_text``, ``loss_teacher``.
    """
    feature = model.encode(images)
    teacher_logit = model.head_teacher(model.encode_teacher(images)).squeeze(1)
    text_logit = model.head_text(text_feature.detach()).squeeze(1)
    loss_image = bce_with_logits(model.head_image(feature).squeeze(1), target)
    loss_text = bce_with_logits(text_logit, target)
    operate_on(
        feature,
        model,
        text_logit=text_logit,
        teacher_logit=teacher_logit,
        target=target,
        batch=len(target),
        config=config.surgery,
    )
    return {
        "loss": loss_image + loss_text,
        "loss_image": loss_image,
        "loss_text": loss_text,
        "loss_teacher": bce_with_logits(teacher_logit, target),
    }


def _epochs(data: MosaicSet, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in range(epochs):
        yield from data.batches(epoch)


def _adam(parameters: Any, config: OptimConfig) -> torch.optim.Adam:
    return torch.optim.Adam(
        parameters, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
    )


def _finite(loss: Tensor, data: MosaicSet, indices: Tensor, stage: str) -> float:
    value = float(loss.detach())
    if not torch.isfinite(loss):
        names = ", ".join(data.samples[int(i)].name for i in indices[:4])
        raise GateFailedError(f"{stage}: the loss is {value}; lower optim.lr. The batch holds {names}, ...")
    return value


def _check_trained(model: DgsNet, trained: list[nn.Parameter], stage: str) -> None:
    # Each loss is taken before its step, so the last step's outcome shows in the weights alone.
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in trained:
        if not torch.isfinite(parameter).all():
            raise GateFailedError(
                f"{stage}: {names[id(parameter)]} holds NaN or Inf at its end; lower optim.lr"
            )
