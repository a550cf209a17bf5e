"""A training run from an empty folder, or from where it was killed, to a checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import GateFailedError, UsageError
from train.backbone import load_clip
from train.checkpoint import RECORD_NAME, read_trained_weights, save_checkpoint
from train.config import TrainConfig
from train.data.mosaics import MosaicSet
from train.device import require_device
from train.fit_options import FitOptions, RunSummary
from train.loop.feed import Material
from train.loop.forecast import forecast_stages, overfit_one_batch
from train.loop.keeper import Keeper, clear_kept
from train.loop.ranks import Ranks, joined_ranks
from train.loop.resume import FOLDER_NAME, Position, State, check_identity, clear_state, load_state
from train.loop.step_log import StepLog
from train.loop.trainer import Trainer
from train.loop.validation import validation_logits
from train.metrics import average_precision
from train.preparation import prepare_data
from train.recipes import build_model, recipe_of
from train.text_features import (
    CACHE_NAME,
    TextFeatures,
    cached_text_features,
    text_features_from_captions,
)

logger = logging.getLogger("dgsnet")

LOGS_NAME = "logs"
# Settings that change how a run computes but not what: they may differ when it is resumed.
FREE_SETTINGS = ("data.workers", "data.cache_gib", "data.teacher_cache_gib", "schedule.save_every")
# The share of its first loss that a batch must come down to when it is trained alone.
_LEARNT = 0.5


def fit_run(data: Path, run: Path, config: TrainConfig, options: FitOptions) -> RunSummary | None:
    """Trains a recipe on DATA/train and writes RUN.

    Under torchrun every process calls this; the first one writes.

    Args:
        data: folder with ``train`` and, where there is one, ``val``.
        run: written; must not hold a checkpoint or an unfinished run, unless the options say what to do.
        config: every setting.
        options: how to go about it.

    Returns:
        the summary; None if ``options.resume`` found the run finished.

    Raises:
        UsageError: RUN holds something already, or the device or the backbone is unknown.
        MissingDependencyError: the device or TensorBoard is absent.
        DataError: the data set or its captions are incomplete or misleading.
        CheckpointError: RUN was begun with other settings or data than these.
        GateFailedError: a loss or a trained weight is not finite, or one batch was not learnt.
    """
    require_device(options.device)
    with joined_ranks(options.device) as ranks:
        state = _state_of(run, options)
        if options.resume and state is None and (run / RECORD_NAME).exists():
            return None
        return _Fit(data, run, config, options, ranks, state).go()


class _Fit:
    """One process's part of a run: reading and checking, then training."""

    def __init__(
        self,
        data: Path,
        run: Path,
        config: TrainConfig,
        options: FitOptions,
        ranks: Ranks,
        state: State | None,
    ) -> None:
        self.run = run
        self.config = config
        self.options = options
        self.ranks = ranks
        self.state = state
        recipe = recipe_of(config)
        captions = options.captions if recipe.needs_captions else None
        self.data = prepare_data(data, config.data, captions=captions, limit=options.limit, ranks=ranks)
        clip, self.backbone = load_clip(config.backbone, config.pretrained, seed=config.seed)
        activation = "QuickGELU" if self.backbone.quick_gelu else "GELU"
        logger.info("backbone %s, %s weights, %s", self.backbone.name, self.backbone.pretrained, activation)
        self.identity = self._identity()
        if state is not None:
            check_identity(run, state.identity, self.identity)
        # Whatever can fail because of the data fails before the run's folder is touched.
        train = MosaicSet(self.data.train, config.data, seed=config.seed, title="reading train patches")
        val = None
        if self.data.val:
            val = MosaicSet(self.data.val, config.data, seed=config.seed, title="reading val patches")
        self._prepare_folder()
        text = self._text_features(clip) if recipe.needs_captions else torch.empty(0)
        visual = clip.visual
        del clip  # the text tower leaves memory here
        torch.manual_seed(config.seed)
        self.model = build_model(visual, self.backbone.embed_dim, config).to(ranks.device)
        self.material = Material(train, val, text)
        self.trainer = Trainer(run, self.model, config, self.material, ranks)

    def go(self) -> RunSummary:
        """Trains, or does what the options ask for instead."""
        if self.state is None:
            for forecast in forecast_stages(
                self.trainer.stages, self.model, self.trainer.feed, self.config, self.ranks
            ):
                logger.info("%s", forecast)
        if self.options.overfit_steps:
            return self._overfit()
        if self.options.dry_run:
            return self._summary()
        return self._train()

    def _train(self) -> RunSummary:
        values = self.state.values if self.state else {}
        keeper = Keeper(
            self.run, self.config.schedule, self._save, values.get("keeper"), writes=self.ranks.is_first
        )
        if self.state is None:
            # From here on RUN is an unfinished run, even if it is killed before its first step.
            self.trainer.save(Position(), None, None, keeper, self.identity)
        else:
            logger.info("going on at step %d", self.state.position.total_step)
        with StepLog(
            self.run / LOGS_NAME if self.ranks.is_first else None,
            resume_at=values.get("log_bytes", 0),
            resume_step=self.state.position.total_step if self.state else 0,
            tensorboard=self.options.tensorboard,
        ) as log:
            steps = self.trainer.train(log, keeper, self.identity, self.state)
        if self.config.schedule.keep == "best" and keeper.best_folder is not None:
            self.ranks.wait()  # the first process has written it
            self.trainer.restore_weights(read_trained_weights(keeper.best_folder))
            logger.info("kept the best checkpoint, of step %d", keeper.best_step)
        if self.ranks.is_first:
            self._save(self.run)  # before validation, which may still fail
        val_ap = self._val_ap()
        if self.ranks.is_first:
            clear_state(self.run)
        return self._summary(steps=steps, val_ap=val_ap, best=keeper.best)

    def _overfit(self) -> RunSummary:
        losses = overfit_one_batch(
            self.trainer.stages[-1],
            self.model,
            self.trainer.feed,
            self.config,
            self.ranks,
            self.options.overfit_steps,
        )
        if not losses[-1] < _LEARNT * losses[0]:
            raise GateFailedError(
                f"one batch, {len(losses)} steps: the loss went from {losses[0]:.4f} to {losses[-1]:.4f}, "
                f"expected less than half; look at the labels and the backbone, or raise optim.lr"
            )
        return self._summary(overfit=(losses[0], losses[-1]))

    def _save(self, folder: Path) -> None:
        facts = self.data.facts() | {"captions": self.options.captions, "processes": self.ranks.count}
        save_checkpoint(folder, self.model, self.config, self.backbone, facts)

    def _val_ap(self) -> float | None:
        val = self.material.val
        if val is None:
            return None
        logits = validation_logits(self.model.eval(), val, self.config.data.batch, self.ranks)
        return average_precision(val.labels.numpy(), logits)

    def _summary(self, **found: Any) -> RunSummary:
        return RunSummary(len(self.data.train), len(self.data.val), self.data.unreadable, **found)

    def _prepare_folder(self) -> None:
        if self.options.writes and self.ranks.is_first:
            if self.state is None:
                clear_state(self.run)
                clear_kept(self.run)
            (self.run / FOLDER_NAME).mkdir(parents=True, exist_ok=True)
        self.ranks.wait()

    def _text_features(self, clip: Any) -> TextFeatures | Tensor:
        clip = clip.to(self.ranks.device)
        name, texts, device = self.config.backbone, self.data.captions, self.ranks.device
        if not self.options.writes:
            return text_features_from_captions(clip, name, texts, device)
        with self.ranks.first_goes_first():
            return cached_text_features(self.run / FOLDER_NAME / CACHE_NAME, clip, name, texts, device)

    def _identity(self) -> dict[str, Any]:
        settings = dict(self.config.flat())
        return {
            **{key: value for key, value in settings.items() if key not in FREE_SETTINGS},
            **{f"data set, {key}": value for key, value in self.data.facts().items()},
            "captions": _digest(self.data.captions),
            "base weights": self.backbone.sha256,
            "processes": self.ranks.count,
            "kind of device": self.ranks.device.partition(":")[0],
            "torch": torch.__version__,
        }


def _state_of(run: Path, options: FitOptions) -> State | None:
    if options.resume:
        if options.overwrite:
            raise UsageError("--resume and --overwrite: found both, expected one of them")
        return load_state(run)
    if options.overwrite or not options.writes:
        return None
    if (run / RECORD_NAME).exists():
        raise UsageError(f"{run}: holds a checkpoint already; choose another folder or give --overwrite")
    if load_state(run) is not None:
        raise UsageError(f"{run}: holds an unfinished run; give --resume to go on, or --overwrite")
    return None


def _digest(captions: list[str]) -> str:
    return hashlib.sha256(json.dumps(captions).encode()).hexdigest()
