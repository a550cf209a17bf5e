"""Every setting of a training run, as one frozen dataclass that travels inside the checkpoint.

Defaults are the released behaviour of DGS-Net. Keys are dotted: ``surgery.order``, ``lora.r``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import UsageError


@dataclass(frozen=True)
class SurgeryConfig:
    """Gradient surgery at the student's image feature.

    Attributes:
        order: "released" projects the help term too, "paper" adds it after the projection.
        harm: "positive" projects off relu(g_text), "full" off g_text.
        align: lambda, the weight of prior alignment.
        align_reduction: "released" divides lambda by the batch once more, "per-sample" does not.
        eps: added to the norm of the harmful direction; 0 means the exact unit direction.
        eps_batch: the B inside the text residual; 0 means the effective batch.
    """

    order: str = "released"
    harm: str = "positive"
    align: float = 0.2
    align_reduction: str = "released"
    eps: float = 1e-6
    eps_batch: int = 0


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the attention of every vision block.

    Attributes:
        r: rank.
        alpha: numerator of the scale.
        scaling: "rslora" is alpha / sqrt(r), as released; "lora" is alpha / r.
        dropout: on the input of the adapter path only; 0.8 as released is unusually high.
        targets: which of q, k, v get an adapter.
    """

    r: int = 6
    alpha: float = 6.0
    scaling: str = "rslora"
    dropout: float = 0.8
    targets: tuple[str, ...] = ("q", "k", "v")

    @property
    def scale(self) -> float:
        """The factor of B·A."""
        return self.alpha / self.r**0.5 if self.scaling == "rslora" else self.alpha / self.r


@dataclass(frozen=True)
class DataConfig:
    """Reading the data set.

    Attributes:
        batch: samples per step.
        workers: processes that decode and select, where the patches are not held in memory.
        cache_gib: hold the selected patches in memory when they need at most this much.
        flip: random horizontal flip of the mosaic in training.
    """

    batch: int = 32
    workers: int = 2
    cache_gib: float = 2.0
    flip: bool = True


@dataclass(frozen=True)
class OptimConfig:
    """Adam, as released.

    Attributes:
        lr: learning rate of both stages.
        beta1: first moment's decay.
        beta2: second moment's decay.
        weight_decay: the L2 term of torch's Adam; 0 as released.
    """

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0


@dataclass(frozen=True)
class ScheduleConfig:
    """How long each stage runs.

    Attributes:
        stage1_epochs: epochs over the data for the teacher head.
        stage2_epochs: epochs over the data for LoRA and the heads.
        stage2_steps: stop stage 2 after so many steps; 0 means by epochs alone.
    """

    stage1_epochs: int = 3
    stage2_epochs: int = 1
    stage2_steps: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        recipe: "dgs".
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
        _choice("recipe", self.recipe, ("dgs",))
        _choice("surgery.order", self.surgery.order, ("released", "paper"))
        _choice("surgery.harm", self.surgery.harm, ("positive", "full"))
        _choice("surgery.align_reduction", self.surgery.align_reduction, ("released", "per-sample"))
        _choice("lora.scaling", self.lora.scaling, ("rslora", "lora"))
        if not self.lora.targets or not set(self.lora.targets) <= {"q", "k", "v"}:
            raise UsageError(f"lora.targets: found {list(self.lora.targets)}, expected some of q, k, v")
        for name, value, low, high in (
            ("seed", self.seed, 0, 2**63 - 1),
            ("surgery.align", self.surgery.align, 0, 10**6),
            ("surgery.eps", self.surgery.eps, 0, 1),
            ("surgery.eps_batch", self.surgery.eps_batch, 0, 2**31),
            ("lora.r", self.lora.r, 1, 4096),
            ("lora.alpha", self.lora.alpha, 1e-6, 10**6),
            ("lora.dropout", self.lora.dropout, 0, 0.999),
            ("data.batch", self.data.batch, 1, 2**20),
            ("data.workers", self.data.workers, 0, 1024),
            ("data.cache_gib", self.data.cache_gib, 0, 2**20),
            ("optim.lr", self.optim.lr, 1e-12, 10),
            ("optim.beta1", self.optim.beta1, 0, 0.999999),
            ("optim.beta2", self.optim.beta2, 0, 0.99999999),
            ("optim.weight_decay", self.optim.weight_decay, 0, 1000),
            ("schedule.stage1_epochs", self.schedule.stage1_epochs, 1, 10**6),
            ("schedule.stage2_epochs", self.schedule.stage2_epochs, 1, 10**6),
            ("schedule.stage2_steps", self.schedule.stage2_steps, 0, 10**9),
        ):
            if not low <= value <= high:  # refuses NaN, which compares false with everything
                raise UsageError(f"{name}: found {value}, expected {low} to {high}")

    def to_json(self) -> dict[str, Any]:
        """Returns the nested form that checkpoints store."""
        content = dataclasses.asdict(self)
        content["lora"]["targets"] = list(self.lora.targets)
        return content

    @classmethod
    def from_json(cls, content: object) -> TrainConfig:
        """Reads the nested form of a checkpoint, in which every key is present.

        Raises:
            UsageError: a missing or unknown key, a wrong type or a value out of range.
        """
        config = cls()
        given = _flat(content) if isinstance(content, dict) else []
        missing = sorted({key for key, _ in _flat(config.to_json())} - {key for key, _ in given})
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
            known = ", ".join(name for name, _ in _flat(self.to_json()))
            raise UsageError(f"setting {key!r} is unknown; there are: {known}")
        changed = dataclasses.replace(section, **{leaf: _typed(key, getattr(section, leaf), value)})
        return dataclasses.replace(self, **{section_name: changed}) if section_name else changed


def config_from_toml(path: Path) -> TrainConfig:
    """Reads a TOML file of settings; keys left out keep their default.

    Raises:
        UsageError: the file cannot be read, or holds what ``TrainConfig.with_value`` refuses.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(f"{path}: cannot be read as TOML ({err})") from err
    return TrainConfig().with_values(_flat(content))


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name}: found {value!r}, expected one of {', '.join(allowed)}")


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _typed(key: str, default: object, value: object) -> object:
    """Returns ``value`` as the type of ``default``, reading texts as a command line gives them."""
    try:
        if isinstance(default, bool):
            if isinstance(value, bool):
                return value
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(default, int):
            number = float(value) if isinstance(value, (int, float, str)) else None
            if number is None or isinstance(value, bool) or number != int(number):
                raise ValueError
            return int(number)
        if isinstance(default, float):
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError
            return float(value)
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else value
            if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
                raise ValueError
            return tuple(parts)
    except (KeyError, ValueError, TypeError, OverflowError) as err:
        wanted = type(default).__name__
        raise UsageError(f"setting {key}: found {value!r}, expected {wanted} such as {default!r}") from err
    if not isinstance(value, str):
        raise UsageError(f"setting {key}: found {value!r}, expected text such as {default!r}")
    return value
