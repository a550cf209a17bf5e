"""Runs a recipe's stages from a position to the end: validation, what is kept, saved states, early stop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from runtime.errors import DataError
from train.config import TrainConfig
from train.loop.feed import Feed, Material
from train.loop.keeper import Keeper
from train.loop.ranks import Ranks
from train.loop.resume import Position, State, random_state, save_state
from train.loop.stage_loop import StageLoop, memory_advice
from train.loop.step_log import StepLog
from train.loop.stopping import StopRequest, stop_requests
from train.loop.validation import validation_logits
from train.metrics import metric_of
from train.model.detector import DgsNet
from train.model.lora import lora_state
from train.recipes import recipe_of

logger = logging.getLogger("dgsnet")


class Trainer:
    """The whole of a run's training.

    Args:
        run: the run's folder.
        model: on the process's device.
        config: every setting.
        material: the data.
        ranks: the processes.
    """

    def __init__(
        self, run: Path, model: DgsNet, config: TrainConfig, material: Material, ranks: Ranks
    ) -> None:
        self._run = run
        self._model = model
        self._config = config
        self._material = material
        self._ranks = ranks
        self.stages = recipe_of(config).stages(config)
        self.feed = Feed(material, model, config, ranks, self.stages)
        self._validated: tuple[int, NDArray[np.float32]] | None = None

    def train(self, log: StepLog, keeper: Keeper, identity: dict[str, Any], state: State | None) -> int:
        """Runs what is left of every stage.

        Args:
            log: receives one record per step and validation.
            keeper: of checkpoints, consulted after each validation of the last stage.
            identity: stored with each state; see ``check_identity``.
            state: where to go on; None begins.

        Returns:
            optimiser steps over all stages.

        Raises:
            GateFailedError: a loss or a trained weight is not finite.
            DataError: a picture cannot be read.
            UsageError: the device's memory is too small.
        """
        position = state.position if state else Position()
        with stop_requests(self._ranks) as stop:
            return self._run_stages(position, log, keeper, identity, state, stop)

    def _run_stages(
        self,
        position: Position,
        log: StepLog,
        keeper: Keeper,
        identity: dict[str, Any],
        state: State | None,
        stop: StopRequest,
    ) -> int:
        if state:
            self.restore_weights(state.group("weights"))
        while position.stage < len(self.stages):
            loop = StageLoop(
                self.stages[position.stage], self._model, self.feed, self._config, self._ranks, log, self._run
            )
            if state and position.step:
                loop.restore(state.group("optimiser"), state.values["optimiser"], state.group("random"))
            else:
                loop.begin(self._material.text_features)
            state = None
            position = self._run_stage(loop, position, log, keeper, identity, stop)
        return position.total_step

    def val_logits(self, step: int) -> NDArray[np.float32]:
        """Returns the logits of the val split after a step, float32 ``[N]``; those of the latest are held.

        Args:
            step: over all stages; names the weights that the model has now.
        """
        assert self._material.val is not None
        if self._validated is None or self._validated[0] != step:
            with memory_advice(self._config):
                logits = validation_logits(self._model, self._material.val, self._config, self._ranks)
            self._validated = (step, logits)
        return self._validated[1]

    def trained_state(self) -> dict[str, Tensor]:
        """Returns adapters and heads by their checkpoint names; the tensors are the model's own."""
        return lora_state(self._model.visual) | self._model.heads_state()

    def restore_weights(self, saved: dict[str, Tensor]) -> None:
        """Copies adapters and heads into the model."""
        for name, tensor in self.trained_state().items():
            tensor.copy_(saved[name])

    def _run_stage(
        self,
        loop: StageLoop,
        position: Position,
        log: StepLog,
        keeper: Keeper,
        identity: dict[str, Any],
        stop: StopRequest,
    ) -> Position:
        def save(place: Position, optimiser: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
            self.save(place, optimiser, log, keeper, identity)

        is_last = loop.stage is self.stages[-1]
        steps = loop.steps(position)
        for position in steps:
            is_due = is_last and self._is_validation_due(position, loop.total)
            is_saved = is_due or stop.is_requested or position.step % self._config.schedule.save_every == 0
            if is_saved:
                loop.flush()
                loop.check_weights()
            if is_due:
                try:
                    self._validate(loop, position, log, keeper)
                except DataError:
                    save(position, loop.optimiser.state())  # a val picture gone bad costs no training
                    raise
                if keeper.is_over:
                    logger.info("ended early: %s", keeper)
                    break
            if is_saved and position.step < loop.total:
                save(position, loop.optimiser.state())
            if stop.is_requested:
                logger.warning("stopped after step %d; --resume goes on from there", position.total_step)
                raise KeyboardInterrupt
        loop.finish()
        position = Position(position.stage + 1, total_step=position.total_step)
        save(position, None)
        return position

    def _is_validation_due(self, position: Position, total: int) -> bool:
        if self._material.val is None:
            return False
        every = self._config.schedule.validate_every
        is_regular = position.step % every == 0 if every else position.window == 0
        return is_regular or position.step == total

    def _validate(self, loop: StageLoop, position: Position, log: StepLog, keeper: Keeper) -> None:
        val = self._material.val
        assert val is not None  # _is_validation_due
        logits = self.val_logits(position.total_step)
        name = self._config.schedule.metric
        value = metric_of(name, val.labels.numpy(), logits)
        log.write(
            {"stage": loop.stage.number, "step": position.step - 1, f"val_{name}": value},
            step=position.total_step - 1,
        )
        keeper.consider(value, position.total_step)
        mark = " (best so far)" if keeper.best_step == position.total_step else ""
        logger.info("step %d: val %s %.4f%s", position.total_step, name, value, mark)

    def save(
        self,
        position: Position,
        optimiser: tuple[dict[str, Tensor], dict[str, Any]] | None,
        log: StepLog | None,
        keeper: Keeper,
        identity: dict[str, Any],
    ) -> None:
        """Saves a state that a resumed run goes on from; every process calls this, the first one writes.

        Args:
            position: of the next step.
            optimiser: its state; None between stages.
            log: made durable first; None before there is one.
            keeper: of checkpoints; forgets those that the saved state no longer names.
            identity: see ``check_identity``.
        """
        moments, values = optimiser or ({}, {})
        groups = {
            "weights": self.trained_state(),
            "optimiser": moments,
            "random": random_state(self._ranks),
        }
        if not self._ranks.is_first:
            return
        tensors = {f"{name}.{k}": v for name, group in groups.items() for k, v in group.items()}
        facts = {"optimiser": values, "keeper": keeper.state(), "log_bytes": log.sync() if log else 0}
        save_state(self._run, State(position, identity, tensors, facts))
        keeper.prune()
