"""The settings of a stored run, read by a version that may know more of them, or fewer, than its writer.

What shapes the model must be there. What only says how it was trained may be absent or of a section that this
version has changed: nothing that evaluates or exports a run depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.errors import UsageError
from train.config.parsing import flat
from train.config.whole import TrainConfig

# Settings, or whole sections, without which the stored weights do not say which model they are.
_SHAPING = ("recipe", "backbone", "pretrained", "lora", "surgery.text_head", "surgery.text_hidden")
# What the model was before a setting that shapes it existed: history, not a default, and never to be changed.
# Whoever adds such a setting adds its line, or older runs can no longer be read.
_BEFORE_IT_EXISTED: dict[str, Any] = {"surgery.text_head": "linear", "surgery.text_hidden": 0}
# Sections that never shape the model: one of their settings that this version does not know is of no account.
_TRAINING_SECTIONS = ("data.", "optim.", "schedule.")


@dataclass(frozen=True)
class StoredConfig:
    """Settings as they were read.

    Attributes:
        config: whole; what was absent is this version's default.
        absent: dotted keys that the run does not state.
        unknown: dotted keys that this version does not know, left out.
    """

    config: TrainConfig
    absent: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def shapes_model(key: str) -> bool:
    """Whether a dotted key decides which model the stored weights are."""
    return key in _SHAPING or key.partition(".")[0] in _SHAPING


def stored_config(content: object) -> StoredConfig:
    """Reads the nested settings of a run's record.

    Raises:
        UsageError: a setting that shapes the model is absent, or one is unknown outside the training
            sections, of another type, or out of its range.
    """
    given = dict(flat(content)) if isinstance(content, dict) else {}
    known = [key for key, _ in TrainConfig().flat()]
    absent = [key for key in known if key not in given]
    needed = [key for key in absent if shapes_model(key) and key not in _BEFORE_IT_EXISTED]
    if needed:
        raise UsageError(
            f"settings: {', '.join(needed)} missing, expected every key that shapes the model; read the run "
            "with the version that wrote it"
        )
    unknown = [key for key in given if key not in known and key.startswith(_TRAINING_SECTIONS)]
    whole = TrainConfig().to_json()
    for key, value in (_BEFORE_IT_EXISTED | given).items():
        if key not in unknown:
            section, _, leaf = key.rpartition(".")
            inside = whole.setdefault(section, {}) if section else whole
            if isinstance(inside, dict):
                inside[leaf] = value
            else:  # a setting here, a section there: unknown
                whole[key] = value
    told = tuple(key for key in absent if key not in _BEFORE_IT_EXISTED)
    return StoredConfig(TrainConfig.from_json(whole), told, tuple(unknown))
