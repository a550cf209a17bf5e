"""This project's own loop, driven one epoch of stage 2 at a time."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from train.config import TrainConfig
from train.data.layout import Sample
from train.data.mosaics import MosaicSet
from train.loop.feed import Material
from train.loop.ranks import Ranks
from train.loop.resume import Position
from train.loop.stage_loop import StageLoop
from train.loop.step_log import StepLog
from train.loop.trainer import Trainer
from train.model.text_features import text_features_from_captions
from train.recipes import Stage, build_model


class OurTrainer:
    """Stages 1 and 2 of recipe "dgs" as ``train.run`` puts them together, on the CPU.

    Args:
        clip: open_clip model with both towers; neither is changed.
        config: recipe "dgs", one epoch of each stage.
        samples: the training split.
        captions: one per sample, encoded here, once.
        folder: receives the log of the steps.
    """

    def __init__(
        self, clip: Any, config: TrainConfig, samples: Sequence[Sample], captions: Sequence[str], folder: Path
    ) -> None:
        self._config = config
        self._folder = folder
        data = MosaicSet(samples, config.data, seed=config.seed, title="reading patches")
        self._text = text_features_from_captions(clip, config.backbone, captions, "cpu")
        torch.manual_seed(config.seed)
        self.model = build_model(copy.deepcopy(clip.visual), clip.visual.output_dim, config)
        self._trainer = Trainer(folder, self.model, config, Material(data, None, self._text), Ranks())
        self._log = StepLog(folder / "logs", tensorboard=False)
        self._stage1, self._stage2 = self._trainer.stages
        self._student: StageLoop | None = None

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """What stage 2 trains."""
        return self._stage2.trained(self.model)

    def learn_teacher(self) -> None:
        """Takes the steps of stage 1; they leave the teacher's features behind, if the settings hold them."""
        loop = self._begun(self._stage1)
        for _ in loop.steps(Position()):
            pass
        self._student = None

    def epoch(self) -> None:
        """Takes the steps of epoch 0 of stage 2."""
        if self._student is None:
            self._student = self._begun(self._stage2)
        steps = cast("Generator[Position, None, None]", self._student.steps(Position(stage=1)))
        for _ in range(self._student.total):
            next(steps)
        # Ending here, and not by itself, keeps the teacher's features for the next time.
        steps.close()

    def close(self) -> None:
        """Closes the log."""
        self._log.__exit__(None, None, None)

    def _begun(self, stage: Stage) -> StageLoop:
        loop = StageLoop(
            stage, self.model, self._trainer.feed, self._config, Ranks(), self._log, self._folder
        )
        loop.begin(self._text)
        return loop
