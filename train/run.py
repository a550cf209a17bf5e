"""A training run from an empty folder, or from where it was killed, to a checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import GateFailedError, UsageError
from runtime.files import remove_temporaries
from train.checkpoint import read_trained_weights, save_checkpoint
from train.config import TrainConfig
from train.data.layout import split_folder
from train.data.mosaics import MosaicSet
from train.device import require_device
from train.fit_options import FitOptions, RunSummary
from train.loop.feed import Material
from train.loop.forecast import Forecast, forecast_stages
from train.loop.keeper import Keeper, clear_kept
from train.loop.overfitting import overfit_one_batch
from train.loop.ranks import Ranks, joined_ranks
from train.loop.resume import (
    FOLDER_NAME,
    STATE_NAME,
    Position,
    State,
    check_identity,
    clear_state,
    load_state,
)
from train.loop.step_log import StepLog, require_tensorboard
from train.loop.trainer import Trainer
from train.metrics import average_precision
from train.model.backbone import load_clip
from train.model.text_features import (
    CACHE_NAME,
    TextFeatures,
    cached_text_features,
    text_features_from_captions,
)
from train.preparation import find_data, prepare_data
from train.recipes import build_model, recipe_of
from train.record import RECORD_NAME, read_record

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
    _check_options(run, config, options)
    with joined_ranks(options.device) as ranks:
        fit = _Fit(data, run, config, options, ranks, _state_of(run, options))
        return None if fit.is_finished else fit.go()


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
        found = find_data(
            data, captions=options.captions if recipe.needs_captions else None, limit=options.limit
        )
        if not found.val:
            _refuse_validation(config)
        clip, self.backbone = load_clip(config.backbone, config.pretrained, seed=config.seed)
        activation = "QuickGELU" if self.backbone.quick_gelu else "GELU"
        logger.info("backbone %s, %s weights, %s", self.backbone.name, self.backbone.pretrained, activation)
        self.data = prepare_data(found, config.data, ranks)
        self.identity = self._identity()
        self.is_finished = options.resume and state is None and (run / RECORD_NAME).exists()
        if self.is_finished:
            record = read_record(run)
            check_identity(run, record.get("identity", {}), self.identity)
            return
        if state is not None:
            check_identity(run, state.identity, self.identity)
        # Whatever can fail because of the data fails before the run's folder is touched.
        train = MosaicSet(self.data.train, config.data, seed=config.seed, title="reading train patches")
        val = None
        if self.data.val:
            val = MosaicSet(self.data.val, config.data, seed=config.seed, title="reading val patches")
        if options.writes and ranks.is_first:
            (run / FOLDER_NAME).mkdir(parents=True, exist_ok=True)
        ranks.wait()
        text = self._text_features(clip) if recipe.needs_captions else torch.empty(0)
        visual = clip.visual
        del clip  # the text tower leaves memory here
        torch.manual_seed(config.seed)
        self.model = build_model(visual, self.backbone.embed_dim, config).to(ranks.device)
        self.material = Material(train, val, text)
        self.trainer = Trainer(run, self.model, config, self.material, ranks)
        self.forecast: tuple[Forecast, ...] = ()

    def go(self) -> RunSummary:
        """Trains, or does what the options ask for instead."""
        if self.state is None:
            self.forecast = forecast_stages(
                self.trainer.stages, self.model, self.trainer.feed, self.config, self.ranks
            )
            for forecast in self.forecast:
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
            if self.ranks.is_first:
                clear_kept(self.run)
        else:
            logger.info("going on at step %d", self.state.position.total_step)
        with StepLog(
            self.run / LOGS_NAME if self.ranks.is_first else None,
            resume_at=values.get("log_bytes", 0),
            resume_step=self.state.position.total_step if self.state else 0,
            tensorboard=self.options.tensorboard,
        ) as log:
            steps = self.trainer.train(log, keeper, self.identity, self.state)
        kept_step = steps
        if self.config.schedule.keep == "best" and keeper.best_folder is not None:
            self.ranks.wait()  # the first process has written it
            self.trainer.restore_weights(read_trained_weights(keeper.best_folder))
            logger.info("kept the best checkpoint, of step %d", keeper.best_step)
            kept_step = keeper.best_step or steps
        if self.ranks.is_first:
            self._save(self.run)  # before validation, which may still fail
        val_ap = self._val_ap(kept_step)
        if self.ranks.is_first:
            clear_state(self.run)
            remove_temporaries(self.run)
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
                f"one batch, {len(losses)} steps: the image loss went from {losses[0]:.4f} to "
                f"{losses[-1]:.4f}, expected less than half; look at the labels and the backbone, try more "
                f"steps, or another optim.lr than {self.config.optim.lr:g}"
            )
        return self._summary(overfit=(losses[0], losses[-1]))

    def _save(self, folder: Path) -> None:
        facts = self.data.facts | {"captions": self.options.captions}
        save_checkpoint(folder, self.model, self.config, self.backbone, facts, identity=self.identity)

    def _val_ap(self, step: int) -> float | None:
        val = self.material.val
        if val is None:
            return None
        return average_precision(val.labels.numpy(), self.trainer.val_logits(step))

    def _summary(self, **found: Any) -> RunSummary:
        data = self.data
        val = str(split_folder(data.val[0])) if data.val else None
        return RunSummary(
            len(data.train), len(data.val), data.facts["unreadable"], val=val, forecast=self.forecast, **found
        )

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
            **{f"data set, {key}": value for key, value in self.data.facts.items()},
            "captions": _digest(self.data.captions),
            "base weights": self.backbone.sha256,
            "processes": self.ranks.count,
            "kind of device": self.ranks.device.partition(":")[0],
            "torch": torch.__version__,
        }


def _check_options(run: Path, config: TrainConfig, options: FitOptions) -> None:
    """Finds mistakes that cost nothing to find before anything is read."""
    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite: found both, expected one of them")
    if options.captions and not recipe_of(config).needs_captions:
        raise UsageError(f"--captions: the recipe {config.recipe!r} reads none; leave it out")
    if options.overfit_steps == 1:
        raise UsageError("--overfit-one-batch: found 1, expected 2 or more steps to compare")
    if not options.writes:
        return
    if options.tensorboard:
        require_tensorboard()
    place = run
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"{place}: found a file, expected a folder for the run")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{place}: cannot be written; choose another folder for the run")


def _refuse_validation(config: TrainConfig) -> None:
    schedule = config.schedule
    asked = {
        "keep=best": schedule.keep == "best",
        "patience": schedule.patience > 0,
        "keep_last": schedule.keep_last > 0,
        "validate_every": schedule.validate_every > 0,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise UsageError(f"schedule.{name}: found no val split beside train, which it is measured on")


def _state_of(run: Path, options: FitOptions) -> State | None:
    if options.resume:
        return load_state(run)
    if options.overwrite or not options.writes:
        return None
    if (run / RECORD_NAME).exists():
        raise UsageError(f"{run}: holds a checkpoint already; choose another folder or give --overwrite")
    if (run / FOLDER_NAME / STATE_NAME).exists():
        raise UsageError(f"{run}: holds an unfinished run; give --resume to go on, or --overwrite")
    return None


def _digest(captions: list[str]) -> str:
    return hashlib.sha256(json.dumps(captions).encode()).hexdigest()
