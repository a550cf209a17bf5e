"""What a run will need, from micro-batches tried before it starts."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from train.config import TrainConfig
from train.loop.feed import Feed
from train.loop.optimiser import HALF
from train.loop.ranks import Ranks
from train.loop.stage_loop import memory_advice
from train.model.detector import DgsNet
from train.recipes import Stage

_TRIALS = 2  # the first pays for caches and compilation


@dataclass(frozen=True)
class Forecast:
    """What a stage will take.

    Attributes:
        stage: 1 or 2.
        steps: optimiser steps.
        step_seconds: of one step: the slower of reading its pictures and computing it.
        reading_seconds: share of that for reading, over all workers.
        memory_gib: peak so far, of the GPU or, on a CPU, of the whole process.
    """

    stage: int
    steps: int
    step_seconds: float
    reading_seconds: float
    memory_gib: float

    @property
    def hours(self) -> float:
        """The whole stage."""
        return self.steps * self.step_seconds / 3600

    def __str__(self) -> str:
        total = self.hours * 3600
        spelt = (
            f"{total:.0f} s"
            if total < 300
            else f"{total / 60:.0f} min"
            if total < 7200
            else f"{self.hours:.1f} h"
        )
        return (
            f"stage {self.stage}: {self.steps} steps of {self.step_seconds:.2f} s (reading "
            f"{self.reading_seconds:.2f} s), {spelt}; memory {self.memory_gib:.1f} GiB"
        )


def forecast_stages(
    stages: list[Stage], model: DgsNet, feed: Feed, config: TrainConfig, ranks: Ranks
) -> tuple[Forecast, ...]:
    """Tries the first window of each stage, without a step of the optimiser, and multiplies.

    The model's weights and the random generators are as before when this returns.

    Raises:
        UsageError: the device's memory is too small.
        DataError: a picture cannot be read.
    """
    forecasts = []
    for stage in stages:
        with _undisturbed(ranks), model.arithmetic(HALF[config.optim.amp], compiled=config.optim.compile):
            trained = stage.prepare(model)
            for _ in range(_TRIALS):
                reading, computing = _trial(stage, model, feed, config, ranks)
                for parameter in trained:
                    parameter.grad = None
        forecasts.append(
            Forecast(stage.number, feed.steps_of(stage), max(reading, computing), reading, _peak_gib(ranks))
        )
    return tuple(forecasts)


def _trial(stage: Stage, model: DgsNet, feed: Feed, config: TrainConfig, ranks: Ranks) -> tuple[float, float]:
    started = time.perf_counter()
    with memory_advice(config):
        held = feed.first_window(stage, lambda: 1.0)
        # One batch gives the workers nothing to do side by side.
        reading = (time.perf_counter() - started) / max(config.data.workers, 1)
        started = time.perf_counter()
        for batch in held:
            stage.losses(model, batch).loss.backward()
        if ranks.device != "cpu":
            torch.cuda.synchronize(ranks.device)
    return reading, time.perf_counter() - started


@contextmanager
def _undisturbed(ranks: Ranks) -> Iterator[None]:
    devices = [] if ranks.device == "cpu" else [torch.device(ranks.device)]
    with torch.random.fork_rng(devices=devices):
        yield


def _peak_gib(ranks: Ranks) -> float:
    if ranks.device != "cpu":
        return torch.cuda.max_memory_allocated(ranks.device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
