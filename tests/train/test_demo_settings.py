"""The settings that the demo trains with, read by the trainer's own reader."""

from __future__ import annotations

from pathlib import Path

import train.demo
from train.config import TrainConfig, config_from_toml
from train.demo import DemoSettings
from train.demo.settings import SEEN_FAMILIES


def demo_config() -> TrainConfig:
    return config_from_toml(Path(train.demo.__file__).with_name("demo.toml"))


def test_demo_toml__its_steps_fit_into_its_epochs() -> None:
    config = demo_config()
    pictures = DemoSettings().train_per_class * 2 * len(SEEN_FAMILIES)
    steps = config.schedule.stage2_epochs * pictures // config.data.batch
    assert config.schedule.stage2_steps == steps


def test_demo_toml__weights_shrink_a_little_in_each_step() -> None:
    optim = demo_config().optim
    # In Adam it would be part of a gradient that is divided by its own size: another strength altogether.
    assert optim.name == "adamw"
    assert 0 < optim.lr * optim.weight_decay < 0.1
