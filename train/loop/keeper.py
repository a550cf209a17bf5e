"""Which checkpoints of a run stay: the best by a named metric, the last few, and when to stop early.

Every kept checkpoint is a whole RUN of its own in RUN/kept/step-<n>; RUN/best is a link to the best of them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.config import ScheduleConfig
from train.metrics import is_better

logger = logging.getLogger("dgsnet")

KEPT_NAME = "kept"
BEST_NAME = "best"


class Keeper:
    """Decides after each validation.

    Args:
        run: the run's folder.
        schedule: metric, patience and how many to keep.
        save: writes the present model as a checkpoint into a folder.
        values: what ``state`` gave, for a resumed run.
        writes: false in all processes but the first.
    """

    def __init__(
        self,
        run: Path,
        schedule: ScheduleConfig,
        save: Callable[[Path], None],
        values: dict[str, Any] | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self._run = run
        self._schedule = schedule
        self._save = save
        self._writes = writes
        values = values or {}
        self.best: float | None = values.get("best")
        self.best_step: int | None = values.get("best_step")
        self._stale: int = values.get("stale", 0)
        self._latest: list[int] = values.get("latest", [])

    def __str__(self) -> str:
        name, patience = self._schedule.metric, self._schedule.patience
        return f"val {name} has not been better than {self.best:.4f} for {patience} validations"

    @property
    def is_over(self) -> bool:
        """Whether the metric has not become better for ``schedule.patience`` validations."""
        return 0 < self._schedule.patience <= self._stale

    @property
    def best_folder(self) -> Path | None:
        """The best checkpoint so far."""
        return None if self.best_step is None else self._folder(self.best_step)

    def consider(self, value: float, step: int) -> None:
        """Takes note of a validation and saves what is to be kept.

        Args:
            value: of the metric, on the val split.
            step: over all stages.
        """
        name = self._schedule.metric
        if self.best is None or is_better(name, value, self.best):
            self.best, self.best_step, self._stale = value, step, 0
        else:
            self._stale += 1
        if self._schedule.keep_last:
            self._latest = [*self._latest, step][-self._schedule.keep_last :]
        if self._writes and step in self._wanted():
            folder = self._folder(step)
            folder.mkdir(parents=True, exist_ok=True)
            self._save(folder)
        if self._writes and self.best_step == step and step in self._wanted():
            self._link_best()

    def state(self) -> dict[str, Any]:
        """Returns JSON values from which a resumed run goes on."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "stale": self._stale,
            "latest": self._latest,
        }

    def prune(self) -> None:
        """Removes what is no longer wanted; call it once the state that says so is saved."""
        wanted = {self._folder(step).name for step in self._wanted()}
        for folder in (self._run / KEPT_NAME).glob("step-*"):
            if folder.name not in wanted:
                shutil.rmtree(folder)

    def _wanted(self) -> set[int]:
        wanted = set(self._latest)
        # Without an early stop or a choice of the best nobody asked for copies of the weights.
        is_asked = self._schedule.keep == "best" or self._schedule.patience or self._schedule.keep_last
        if is_asked and self.best_step is not None:
            wanted.add(self.best_step)
        return wanted

    def _link_best(self) -> None:
        assert self.best_step is not None
        link, target = self._run / BEST_NAME, Path(KEPT_NAME) / self._folder(self.best_step).name
        temporary = self._run / f".{BEST_NAME}.tmp-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)

    def _folder(self, step: int) -> Path:
        return self._run / KEPT_NAME / f"step-{step:08d}"


def clear_kept(run: Path) -> None:
    """Removes RUN/best and RUN/kept."""
    (run / BEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(run / KEPT_NAME, ignore_errors=True)
