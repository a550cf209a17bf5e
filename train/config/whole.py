"""Every setting of a training run, as one frozen dataclass that travels inside the checkpoint.

Keys are dotted: ``surgery.order``, ``lora.r``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import UsageError
from train.config.parsing import flat, read_toml, typed
from train.config.sections import DataConfig, LoraConfig, OptimConfig, ScheduleConfig, SurgeryConfig

RECIPES = ("dgs", "linear", "lora")
_CHOICES = {
    "recipe": RECIPES,
    "surgery.order": ("released", "paper"),
    "surgery.harm": ("positive", "full"),
    "surgery.align_reduction": ("released", "per-sample"),
    "surgery.text_head": ("linear", "mlp"),
    "lora.scaling": ("rslora", "lora"),
    "data.balance": ("none", "sampler", "pos-weight"),
    "data.audit": ("full", "headers"),
    "optim.name": ("adam", "adamw"),
    "optim.amp": ("off", "bf16", "fp16"),
    "schedule.decay": ("none", "linear", "cosine"),
    "schedule.metric": ("ap", "auroc", "accuracy", "loss"),
    "schedule.keep": ("last", "best"),
}
# Lowest and highest value; of a range, of both its ends.
_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "surgery.align": (0, 10**6),
    "surgery.eps": (0, 1),
    "surgery.eps_batch": (0, 2**31),
    "surgery.text_hidden": (0, 2**16),
    "surgery.text_warmup_steps": (0, 10**9),
    "lora.r": (1, 4096),
    "lora.alpha": (1e-6, 10**6),
    "lora.dropout": (0, 0.999),
    "data.batch": (1, 2**20),
    "data.workers": (0, 1024),
    "data.cache_gib": (0, 2**20),
    "data.teacher_cache_gib": (0, 2**20),
    "data.max_corrupt": (0, 1),
    "data.jpeg": (0, 1),
    "data.jpeg_quality": (1, 100),
    "data.blur": (0, 1),
    "data.blur_sigma": (0, 100),
    "data.resize": (0, 1),
    "data.resize_scale": (0.05, 4),
    "optim.lr": (1e-12, 10),
    "optim.beta1": (0, 0.999999),
    "optim.beta2": (0, 0.99999999),
    "optim.weight_decay": (0, 1000),
    "optim.clip_norm": (0, 10**9),
    "optim.accumulate": (1, 2**20),
    "schedule.stage1_epochs": (1, 10**6),
    "schedule.stage2_epochs": (1, 10**6),
    "schedule.stage1_steps": (0, 10**9),
    "schedule.stage2_steps": (0, 10**9),
    "schedule.warmup_steps": (0, 10**9),
    "schedule.validate_every": (0, 10**9),
    "schedule.patience": (0, 10**6),
    "schedule.keep_last": (0, 10**6),
    "schedule.save_every": (1, 10**9),
}


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        recipe: "dgs", "linear" (a head on frozen features) or "lora" (adapters without surgery).
        backbone: name of an open_clip model, or "dgsnet-tiny-p32", the demo's.
        pretrained: open_clip tag, local weight file, "random" or "random-bandpass".
        seed: of initialisation, order, augmentation and dropout.
    """

    recipe: str = "dgs"
    backbone: str = "ViT-L-14-quickgelu"
    pretrained: str = "openai"
    seed: int = 100
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if self[name] not in allowed:
                raise UsageError(f"{name}: found {self[name]!r}, expected one of {', '.join(allowed)}")
        if not self.lora.targets or not set(self.lora.targets) <= {"q", "k", "v"}:
            raise UsageError(f"lora.targets: found {list(self.lora.targets)}, expected some of q, k, v")
        for name, (low, high) in _LIMITS.items():
            value = self[name]
            if isinstance(value, tuple) and (len(value) != 2 or not value[0] <= value[1]):
                raise UsageError(f"{name}: found {list(value)}, expected the lowest and the highest value")
            for number in value if isinstance(value, tuple) else (value,):
                if not low <= number <= high:  # refuses NaN, which compares false with everything
                    raise UsageError(f"{name}: found {number}, expected {low} to {high}")

    def __getitem__(self, key: str) -> Any:
        section, _, leaf = key.rpartition(".")
        return getattr(getattr(self, section) if section else self, leaf)

    def to_json(self) -> dict[str, Any]:
        """Returns the nested form that checkpoints store."""
        return _with_lists(dataclasses.asdict(self))

    def flat(self) -> list[tuple[str, Any]]:
        """Returns (dotted key, JSON value) of every setting."""
        return flat(self.to_json())

    @classmethod
    def from_json(cls, content: object) -> TrainConfig:
        """Reads the nested form of a checkpoint, in which every key is present.

        Raises:
            UsageError: a missing or unknown key, a wrong type or a value out of range.
        """
        config = cls()
        given = flat(content) if isinstance(content, dict) else []
        missing = sorted({key for key, _ in config.flat()} - {key for key, _ in given})
        if missing:
            raise UsageError(f"settings: {', '.join(missing)} missing, expected every key")
        return config.with_values(given)

    def with_values(self, pairs: Iterable[tuple[str, object]]) -> TrainConfig:
        """Returns a copy with several dotted keys changed; see ``with_value``."""
        config = self
        for key, value in pairs:
            config = config.with_value(key, value)
        return config

    def with_value(self, key: str, value: object) -> TrainConfig:
        """Returns a copy in which one dotted key has another value; texts are parsed to its type.

        Raises:
            UsageError: an unknown key, a wrong type or a value out of range.
        """
        section_name, _, leaf = key.rpartition(".")
        section: Any = getattr(self, section_name, None) if section_name else self
        names = {f.name for f in dataclasses.fields(section)} if dataclasses.is_dataclass(section) else set()
        if leaf not in names or dataclasses.is_dataclass(getattr(section, leaf)):
            known = [name for name, _ in self.flat()]
            near = difflib.get_close_matches(key, known, n=4, cutoff=0.4) or known
            raise UsageError(f"setting {key!r} is unknown; nearest: {', '.join(near)} (see docs/training.md)")
        changed = dataclasses.replace(section, **{leaf: typed(key, getattr(section, leaf), value)})
        return dataclasses.replace(self, **{section_name: changed}) if section_name else changed


def config_from_toml(path: Path) -> TrainConfig:
    """Reads a TOML file of settings; keys left out keep their default.

    Raises:
        UsageError: the file cannot be read, or holds what ``TrainConfig.with_value`` refuses.
    """
    return TrainConfig().with_values(flat(read_toml(path)))


def _with_lists(content: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples: what is stored must equal what is read back."""
    given = {key: _with_lists(value) if isinstance(value, dict) else value for key, value in content.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
