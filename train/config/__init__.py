"""Every setting of a training run: its sections, the whole of them, and how texts and files become them."""

from train.config.sections import DataConfig, LoraConfig, OptimConfig, ScheduleConfig, SurgeryConfig
from train.config.stored import StoredConfig, stored_config
from train.config.whole import TrainConfig, config_from_toml

__all__ = [
    "DataConfig",
    "LoraConfig",
    "OptimConfig",
    "ScheduleConfig",
    "SurgeryConfig",
    "StoredConfig",
    "TrainConfig",
    "config_from_toml",
    "stored_config",
]
