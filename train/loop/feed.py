"""From the training split to the micro-batches of each optimiser step, for one process among several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.config import TrainConfig
from train.data.mosaics import MosaicSet
from train.data.order import epoch_windows, positive_weight, shares_of_window
from train.loop.ranks import Ranks
from train.loop.teacher_features import TeacherFeatures
from train.model.detector import DgsNet
from train.model.text_features import TextFeatures
from train.recipes import Batch, Stage

Window = NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """What a run learns from.

    Attributes:
        train: the training split.
        val: the validation split, if there is one.
        text_features: f_x of every training sample, by index, float32 on the CPU; empty without captions.
    """

    train: MosaicSet
    val: MosaicSet | None
    text_features: TextFeatures | Tensor


class Feed:
    """Gives every stage its batches.

    Args:
        material: the data.
        model: computes teacher features that are not held.
        config: every setting.
        ranks: the processes, among which each window is shared.
        stages: of the recipe, in their order.
    """

    def __init__(
        self, material: Material, model: DgsNet, config: TrainConfig, ranks: Ranks, stages: list[Stage]
    ) -> None:
        self.data = material.train
        self._text = material.text_features
        self._model = model
        self._config = config
        self._ranks = ranks
        self._labels = material.train.labels.numpy()
        is_weighted = config.data.balance == "pos-weight"
        self._weight = positive_weight(self._labels) if is_weighted else 1.0
        is_reused = stages[-1].needs_teacher and any(stage.keeps_teacher for stage in stages)
        self._teacher = TeacherFeatures(
            len(self.data),
            model.head_image.in_features,
            -(-self.steps_of(stages[-1]) // len(self.windows(0))) if is_reused else 0,
            config.data.teacher_cache_gib * 2**30,
        )

    def windows(self, epoch: int) -> list[Window]:
        """Returns the indices of each optimiser step of an epoch, the same in every stage and process."""
        data = self._config.data
        return epoch_windows(
            self._labels, batch=data.batch, seed=self._config.seed, epoch=epoch, balance=data.balance
        )

    def steps_of(self, stage: Stage) -> int:
        """Returns how many optimiser steps a stage has, if nothing ends it early."""
        total = stage.epochs * len(self.windows(0))
        return min(total, stage.steps) if stage.steps else total

    def batches(
        self, stage: Stage, epoch: int, windows: list[Window], scale: Callable[[], Tensor | float]
    ) -> Iterator[tuple[Window, Iterator[Batch]]]:
        """Yields each window (the indices of all processes) with this process's micro-batches of it.

        Args:
            stage: says which features a batch needs.
            epoch: within the stage; draws depend on it.
            windows: some of ``windows(epoch)``.
            scale: gives S at the time of a micro-batch.
        """
        count = self._config.optim.accumulate
        shares = [
            [micro for micro in mine if len(micro)]
            for window in windows
            for mine in [
                shares_of_window(window, ranks=self._ranks.count, micro_batches=count)[self._ranks.rank]
            ]
        ]
        reader = self.data.read(
            [micro for share in shares for micro in share], epoch, pin=self._ranks.device != "cpu"
        )

        def micro_batches(window: Window, count: int) -> Iterator[Batch]:
            for _ in range(count):
                images, indices = next(reader)
                yield self._batch(stage, epoch, images, indices, len(window), scale())

        for window, share in zip(windows, shares, strict=True):
            yield window, micro_batches(window, len(share))

    def first_window(self, stage: Stage, scale: Callable[[], Tensor | float]) -> list[Batch]:
        """Returns this process's micro-batches of the first window of epoch 0."""
        return next(list(batches) for _, batches in self.batches(stage, 0, self.windows(0)[:1], scale))

    def drop_teacher(self, epoch: int) -> None:
        """Frees the teacher features of an epoch that no later stage asks for."""
        self._teacher.drop_epoch(epoch)

    def _batch(
        self, stage: Stage, epoch: int, images: Tensor, indices: Tensor, size: int, scale: Tensor | float
    ) -> Batch:
        device = self._ranks.device
        images = images.to(device, non_blocking=True)
        return Batch(
            images=images,
            target=self.data.labels[indices].to(device, non_blocking=True),
            size=size,
            positive_weight=self._weight,
            scale=scale,
            text_feature=self._text[indices].to(device) if stage.needs_text else torch.empty(0),
            teacher_feature=partial(self._teacher_feature, stage, epoch, images, indices),
        )

    def _teacher_feature(self, stage: Stage, epoch: int, images: Tensor, indices: Tensor) -> Tensor:
        known = None if stage.keeps_teacher else self._teacher.get(epoch, indices)
        if known is not None:
            return known.to(images.device)
        feature = self._model.encode_teacher(images)
        if stage.keeps_teacher:
            self._teacher.put(epoch, indices, feature)
        return feature
