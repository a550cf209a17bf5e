"""One optimiser step: loss scale, sum over processes, clipping, learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.config import OptimConfig, ScheduleConfig
from train.loop.ranks import Ranks

HALF = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Returns what the learning rate of a step is multiplied by.

    Args:
        schedule: warm-up and decay.
        step: within the stage, from 0.
        steps: of the whole stage.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    done = (step - schedule.warmup_steps) / max(steps - schedule.warmup_steps, 1)
    if schedule.decay == "linear":
        return 1 - done
    if schedule.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


class Optimiser:
    """Adam or AdamW over what a stage trains.

    Args:
        parameters: float32, always in the same order.
        config: optimiser and arithmetic.
        ranks: whose gradients are added up.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: OptimConfig, ranks: Ranks) -> None:
        self.parameters = list(parameters)
        self._config = config
        self._ranks = ranks
        kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        self._adam = kind(
            self.parameters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        device = self.parameters[0].device
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self._one = torch.ones((), device=device)

    @property
    def scale(self) -> Tensor:
        """S, which multiplies the loss: float32 scalar on the device, 1 but for fp16."""
        return self._scaler.scale(self._one)

    def clear(self) -> None:
        """Forgets the gradients of the step before."""
        self._adam.zero_grad(set_to_none=True)

    def step(self, factor: float, figures: Tensor) -> Tensor:
        """Adds up gradients and figures over processes in one message, clips, and moves the parameters.

        Losses are sums divided by the effective batch, so that a sum over processes is the gradient itself.
        A step whose gradients overflowed in fp16 moves nothing and lowers S.

        Args:
            factor: of the learning rate.
            figures: float32 ``[k]``, of this process; summed over processes in place.

        Returns:
            norm of the whole gradient before clipping, S divided out; a scalar on the device.
        """
        if self._ranks.count > 1:
            self._add_up(figures)
        self._scaler.unscale_(self._adam)
        limit = self._config.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit) if limit < math.inf else self._norm()
        for group in self._adam.param_groups:
            group["lr"] = self._config.lr * factor
        self._scaler.step(self._adam)
        self._scaler.update()
        return norm

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns (tensors, JSON values) from which ``restore`` goes on bit for bit."""
        tensors = {}
        for index, parameter in enumerate(self.parameters):
            for name, value in self._adam.state.get(parameter, {}).items():
                tensors[f"{index}.{name}"] = value.detach()
        return tensors, {"scaler": self._scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Takes over what ``state`` gave."""
        template = self._adam.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, leaf = name.partition(".")
            moments.setdefault(int(index), {})[leaf] = tensor
        self._adam.load_state_dict({"state": moments, "param_groups": template["param_groups"]})
        if values["scaler"]:
            self._scaler.load_state_dict(values["scaler"])

    def _norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def _add_up(self, figures: Tensor) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:  # no sample of the window fell to this process
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        packed = torch.cat([*(gradient.flatten() for gradient in gradients), figures])
        self._ranks.add_up(packed)
        parts = packed.split([*(gradient.numel() for gradient in gradients), figures.numel()])
        for gradient, part in zip(gradients, parts, strict=False):
            gradient.copy_(part.view_as(gradient))
        figures.copy_(parts[-1])
