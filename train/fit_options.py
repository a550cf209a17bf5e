"""How a training run is carried out, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass

from train.loop.forecast import Forecast


@dataclass(frozen=True)
class FitOptions:
    """How a run is carried out, as opposed to what it computes.

    Attributes:
        captions: as ``find_captions`` takes it; "" for DATA/captions.json.
        device: "cpu", "cuda" or "cuda:N".
        resume: go on from RUN/resume; begins if there is nothing yet.
        overwrite: replace the checkpoint, the logs and the unfinished state that RUN holds.
        limit: use at most so many pictures of each split; 0 uses all.
        dry_run: do all but training, and write nothing.
        overfit_steps: train one batch for so many steps, 2 or more, and write nothing; 0 does not.
        tensorboard: write TensorBoard's files beside the JSON lines.
    """

    captions: str = ""
    device: str = "cpu"
    resume: bool = False
    overwrite: bool = False
    limit: int = 0
    dry_run: bool = False
    overfit_steps: int = 0
    tensorboard: bool = True

    @property
    def writes(self) -> bool:
        """Whether RUN is written at all."""
        return not self.dry_run and not self.overfit_steps


@dataclass(frozen=True)
class RunSummary:
    """What a run reports.

    Attributes:
        train_samples: pictures trained on.
        val_samples: pictures of the val split.
        unreadable: pictures that were left out.
        steps: optimiser steps over all stages; 0 if nothing was trained.
        val_ap: AP of the checkpoint on val; None without such a split.
        best: best value of ``schedule.metric`` on the way; None if it was never measured.
        overfit: first and last L_img of ``overfit_steps``.
        val: folder of the val split; None without one.
        forecast: what each stage was expected to take before it began.
    """

    train_samples: int
    val_samples: int
    unreadable: int
    steps: int = 0
    val_ap: float | None = None
    best: float | None = None
    overfit: tuple[float, float] | None = None
    val: str | None = None
    forecast: tuple[Forecast, ...] = ()
