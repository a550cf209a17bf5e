"""The two settings of the training benchmark, the contestants of each, and what they are asked to reach."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import train.data.mosaics
import train.recipes.dgs
from benchmarks.training import straightforward
from benchmarks.training.ours import OurTrainer
from benchmarks.training.phases import Phases
from benchmarks.training.straightforward import StraightforwardTrainer
from train.config import TrainConfig
from train.data.layout import Sample
from train.loop.optimiser import Optimiser
from train.loop.teacher_features import TeacherFeatures
from train.model.backbone import load_clip
from train.model.detector import DgsNet
from train.model.text_features import TextFeatures, text_features_from_captions

STRAIGHTFORWARD, TEXT_CACHED, TEACHER_REUSED = "straightforward", "text cached", "text cached, teacher reused"
_GIB_OF_PATCHES = 2.0


@dataclass(frozen=True)
class Setting:
    """One comparison.

    Attributes:
        name: on the command line.
        title: in the table.
        backbone: of open_clip, or the demo's; its weights are random.
        batch: B.
        steps: of a lap, one epoch.
        is_held: whether the selected patches are in memory, so that no step decodes.
        goals: least ratio by contestant.
    """

    name: str
    title: str
    backbone: str
    batch: int
    steps: int
    is_held: bool
    goals: dict[str, float]

    def config(self, workers: int) -> TrainConfig:
        """Returns the settings of both trainers; all that is not named here is the published default."""
        return TrainConfig(backbone=self.backbone, pretrained="random").with_values(
            [
                ("data.batch", self.batch),
                ("data.workers", workers),
                ("data.cache_gib", _GIB_OF_PATCHES if self.is_held else 0),
                ("schedule.stage1_epochs", 1),
            ]
        )


SETTINGS = (
    Setting(
        "jpeg",
        "JPEG files decoded and selected in every step",
        "dgsnet-tiny-p32",
        batch=16,
        steps=6,
        is_held=False,
        goals={TEACHER_REUSED: 3.5},
    ),
    Setting(
        "held",
        "selected patches held in memory",
        "ViT-B-32",
        batch=8,
        steps=3,
        is_held=True,
        goals={TEXT_CACHED: 1.2, TEACHER_REUSED: 1.5},
    ),
)

# What a step of either trainer does, function by function; the rest is the student.
_READING = [
    (torch.utils.data.dataloader._BaseDataLoaderIter, "__next__", "mosaic"),
]
_OURS = [
    *_READING,
    (train.data.mosaics, "decode_image", "decode"),
    (train.data.mosaics, "selected_patches", "select"),
    (DgsNet, "encode_teacher", "teacher"),
    (TeacherFeatures, "get", "teacher"),
    (TextFeatures, "__getitem__", "text"),
    (train.recipes.dgs, "operate_on", "surgery"),
    (Optimiser, "step", "optimiser"),
]
_STRAIGHTFORWARD = [
    *_READING,
    (straightforward, "decode", "decode"),
    (straightforward, "select", "select"),
    (StraightforwardTrainer, "teacher_feature", "teacher"),
    (StraightforwardTrainer, "text_feature", "text"),
    (StraightforwardTrainer, "text_and_teacher", "surgery"),
    (torch.optim.Adam, "step", "optimiser"),
]


class Arena:
    """The contestants of a setting, all with the same initial weights, pictures, order and draws.

    Use as a context manager.

    Args:
        setting: which comparison.
        samples: as many as the setting's batch times its steps.
        captions: one per sample.
        folder: receives logs.
        workers: processes that read pictures.

    Attributes:
        once_ms: what this project pays before stage 2, in milliseconds.
    """

    def __init__(
        self, setting: Setting, samples: list[Sample], captions: list[str], folder: Path, workers: int
    ) -> None:
        self._setting, self._samples, self._captions, self._folder = setting, samples, captions, folder
        self._clip: Any = load_clip(setting.backbone, "random", seed=100)[0]
        self.once_ms: dict[str, float] = {}
        self._open = ExitStack()
        self._trainers = self._made(workers)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    def laps(self) -> dict[str, Callable[[], object]]:
        """Returns an epoch of stage 2 of every contestant."""
        return {name: partial(_quietly, trainer.epoch) for name, trainer in self._trainers.items()}

    def phases(self) -> dict[str, dict[str, float]]:
        """Returns milliseconds per step by contestant and phase, reading in the trainer's own thread."""
        found = {}
        for name, trainer in self._made(0).items():
            targets = _STRAIGHTFORWARD if name == STRAIGHTFORWARD else _OURS
            _quietly(trainer.epoch)  # warms up
            phases = Phases()
            with phases.watching(targets):
                _quietly(trainer.epoch)
            found[name] = {phase: 1000 * s / self._setting.steps for phase, s in phases.seconds.items()}
        return found

    def _made(self, workers: int) -> dict[str, StraightforwardTrainer | OurTrainer]:
        config = self._setting.config(workers)
        bare = config.with_value("data.teacher_cache_gib", 0)
        clip = copy.deepcopy(self._clip)
        with _quiet():
            given = (self._samples, self._captions)
            straight = StraightforwardTrainer(clip, config, *given, is_held=self._setting.is_held)
            text_cached, reused = (
                self._open.enter_context(closing(OurTrainer(clip, each, *given, self._folder / place)))
                for each, place in ((bare, f"bare-{workers}"), (config, f"reused-{workers}"))
            )
            self._time_once(clip, reused)
        return {STRAIGHTFORWARD: straight, TEXT_CACHED: text_cached, TEACHER_REUSED: reused}

    def _time_once(self, clip: Any, reused: OurTrainer) -> None:
        started = perf_counter()
        text_features_from_captions(clip, self._setting.backbone, self._captions, "cpu")
        encoded = perf_counter()
        phases = Phases()
        with phases.watching([(TeacherFeatures, "put", "keeping"), (DgsNet, "encode_teacher", "teacher")]):
            reused.learn_teacher()
        self.once_ms = {
            "text_features_per_distinct_caption": 1000 * (encoded - started) / len(set(self._captions)),
            "teacher_features_per_picture": 1000 * phases.seconds["teacher"] / len(self._samples),
            "keeping_teacher_features_per_picture": 1000 * phases.seconds["keeping"] / len(self._samples),
        }


def _quietly(work: Callable[[], object]) -> None:
    with _quiet():
        work()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the trainers' own progress."""
    logger = logging.getLogger("dgsnet")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
