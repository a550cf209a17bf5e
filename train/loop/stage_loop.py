"""One stage of a recipe, step by step, from a position to its end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from runtime.console import Progress
from runtime.errors import GateFailedError, UsageError, one_line
from runtime.files import write_atomically
from train.config import TrainConfig
from train.loop.feed import Feed, Window
from train.loop.optimiser import HALF, Optimiser, learning_rate_factor
from train.loop.ranks import Ranks
from train.loop.resume import Position, restore_random_state
from train.loop.step_log import FLUSH_EVERY, StepLog, floats_from_rows
from train.loop.text_warmup import warm_up
from train.model.detector import DgsNet
from train.model.text_features import TextFeatures
from train.recipes import Batch, Stage

FAILED_BATCH_NAME = "failed-batch.json"


class StageLoop:
    """Takes the steps of one stage and says after each where the run stands.

    Args:
        stage: what is trained.
        model: on the process's device.
        feed: gives the batches.
        config: every setting.
        ranks: the processes.
        log: receives one record per step.
        run: where the file names of a batch are saved whose loss is not finite.
    """

    def __init__(
        self,
        stage: Stage,
        model: DgsNet,
        feed: Feed,
        config: TrainConfig,
        ranks: Ranks,
        log: StepLog,
        run: Path,
    ) -> None:
        self.stage = stage
        self._model = model
        self._feed = feed
        self._config = config
        self._ranks = ranks
        self._log = log
        self._run = run
        self.total = feed.steps_of(stage)
        self._trained = stage.prepare(model)
        self.optimiser = Optimiser(self._trained, config.optim, ranks)
        self._names = (*stage.parts, *stage.sums)
        self._pending: list[tuple[Position, Window, Tensor]] = []
        self._generators: dict[str, Tensor] = {}
        self._window: tuple[Position, Window] | None = None
        self._loss = math.nan

    def begin(self, text_features: TextFeatures | Tensor) -> None:
        """Seeds the process's dropout and warms the text head up; not for a resumed stage."""
        torch.manual_seed(self._config.seed + 1000 * self.stage.number + self._ranks.rank)
        if self.stage.needs_text:
            warm_up(self._model.head_text, text_features, self._feed.data.labels, self._config)
        self._ranks.copy_from_first([parameter.detach() for parameter in self._trained])

    def restore(self, optimiser: dict[str, Tensor], values: Any, generators: dict[str, Tensor]) -> None:
        """Goes on from a saved state; the generators are set once the first batch has been read."""
        self.optimiser.restore(optimiser, values)
        self._generators = generators

    def steps(self, position: Position) -> Iterator[Position]:
        """Takes the steps that are left and yields the position after each.

        Raises:
            GateFailedError: a loss is not finite.
            DataError: a picture cannot be read.
            UsageError: the device's memory is too small.
        """
        half, compiled = HALF[self._config.optim.amp], self._config.optim.compile
        title, start = self.stage.title, position.step
        with (
            Progress(title, self.total, start=start) as progress,
            self._model.arithmetic(half, compiled=compiled),
            memory_advice(self._config),
        ):
            while position.step < self.total:
                windows = self._feed.windows(position.epoch)
                left = windows[position.window :][: self.total - position.step]
                shares = self._feed.batches(self.stage, position.epoch, left, lambda: self.optimiser.scale)
                for window, batches in shares:
                    self._step(position, window, batches)
                    progress.advance(note=self._note())
                    position = _after(position, len(windows))
                    yield position
                if position.window == 0 and not self.stage.keeps_teacher:
                    self._feed.drop_teacher(position.epoch - 1)

    def finish(self) -> None:
        """Logs the last steps and checks what they made of the weights.

        Raises:
            GateFailedError: a loss or a trained weight is not finite.
        """
        self.flush()
        self.check_weights()

    def flush(self) -> None:
        """Brings the figures of the latest steps over, checks and logs them."""
        rows = floats_from_rows([figures for _, _, figures in self._pending])
        pending, self._pending = self._pending, []
        for (position, window, _), row in zip(pending, rows, strict=True):
            named = dict(zip(self._names, row, strict=False))
            for name in self.stage.sums:
                named[name] /= len(window)
            self._refuse_odd_loss(position, window, named)
            self._loss = named[self.stage.parts[0]]
            factor = learning_rate_factor(self._config.schedule, position.step, self.total)
            record = {"stage": self.stage.number, "epoch": position.epoch, "step": position.step}
            rest = {"gradient_norm": row[-1], "lr": self._config.optim.lr * factor}
            self._log.write(record | named | rest, step=position.total_step)

    def _step(self, position: Position, window: Window, batches: Iterator[Batch]) -> None:
        self.optimiser.clear()
        figures = torch.zeros(len(self._names), device=self._ranks.device)
        for batch in batches:
            if self._generators:
                restore_random_state(self._generators, self._ranks)
                self._generators = {}
            outcome = self.stage.losses(self._model, batch)
            (outcome.loss * batch.scale).backward()
            values = outcome.parts | outcome.sums
            figures += torch.stack([values[name].detach().float() for name in self._names])
        factor = learning_rate_factor(self._config.schedule, position.step, self.total)
        norm = self.optimiser.step(factor, figures)
        self._window = (position, window)
        self._pending.append((position, window, torch.cat([figures, norm.detach().float().view(1)])))
        # A transfer each step would make a GPU wait for the host.
        if self._ranks.device == "cpu" or len(self._pending) >= FLUSH_EVERY:
            self.flush()

    def _note(self) -> str:
        return "" if math.isnan(self._loss) else f"loss {self._loss:.3f}"

    def _refuse_odd_loss(self, position: Position, window: Window, named: dict[str, float]) -> None:
        odd = [name for name in self.stage.parts if not abs(named[name]) < float("inf")]
        if not odd:
            return
        self._stop_at(position, window, f"{odd[0]} is {named[odd[0]]}")

    def check_weights(self) -> None:
        """Looks at what the last step made of the weights, which shows in no loss yet.

        Raises:
            GateFailedError: a trained weight is not finite.
        """
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        for parameter in self._trained:
            if not torch.isfinite(parameter).all() and self._window is not None:
                self._stop_at(*self._window, f"{names[id(parameter)]} holds NaN or Inf after it")

    def _stop_at(self, position: Position, window: Window, found: str) -> NoReturn:
        names = [self._feed.data.samples[int(index)].name for index in window]
        place = self._run / FAILED_BATCH_NAME
        if self._ranks.is_first:
            record = {"stage": self.stage.number, "epoch": position.epoch, "step": position.step}
            write_atomically(place, (json.dumps(record | {"pictures": names}, indent=1) + "\n").encode())
        raise GateFailedError(
            f"stage {self.stage.number}, step {position.step}: {found}; lower optim.lr. "
            f"The batch holds {', '.join(names[:3])}, ...: all names are in {place}"
        )


@contextmanager
def memory_advice(config: TrainConfig) -> Iterator[None]:
    """Turns an allocation that failed into one line that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as err:
        raise UsageError(_advice(config, err)) from err
    except RuntimeError as err:
        if "not enough memory" not in str(err):  # what the CPU allocator says
            raise
        raise UsageError(_advice(config, err)) from err


def _advice(config: TrainConfig, err: Exception) -> str:
    half = "" if config.optim.amp != "off" else ", give optim.amp=bf16"
    return (
        f"out of memory with {config.data.batch} samples in {config.optim.accumulate} micro-batches: raise "
        f"optim.accumulate (the result stays the same){half}, or take a smaller backbone "
        f"({one_line(err, 160)})"
    )


def _after(position: Position, windows: int) -> Position:
    moved = replace(position, step=position.step + 1, total_step=position.total_step + 1)
    if position.window + 1 < windows:
        return replace(moved, window=position.window + 1)
    return replace(moved, epoch=position.epoch + 1, window=0)
