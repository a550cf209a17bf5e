"""Settings: their types, their ranges, their round trips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.errors import UsageError
from train.config import TrainConfig, config_from_toml


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lora.rank", "3", "lora.rank' is unknown; nearest: .*lora.r,"),
        ("lora.r", "many", "lora.r: found 'many', expected int"),
        ("lora.r", "0", "lora.r: found 0, expected 1 to"),
        ("surgery.order", "first", "surgery.order: found 'first'"),
        ("data.flip", "maybe", "data.flip: found 'maybe'"),
        ("lora.targets", "q,o", "lora.targets"),
        ("lora", "3", "unknown"),
    ],
)
def test_config__refuses_with_the_key_in_the_message(key: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig().with_value(key, value)


def test_config__survives_json_and_toml(tmp_path: Path) -> None:
    config = (
        TrainConfig()
        .with_value("lora.targets", "q,v")
        .with_value("optim.lr", "0.5")
        .with_value("data.flip", "false")
    )
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    (tmp_path / "a.toml").write_text('seed = 9\n[lora]\nr = 8\ntargets = ["k"]\n')
    read = config_from_toml(tmp_path / "a.toml")
    assert (read.seed, read.lora.r, read.lora.targets) == (9, 8, ("k",))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "-1"),
        ("surgery.align", "-0.1"),
        ("lora.alpha", "0"),
        ("data.cache_gib", "-1"),
        ("optim.beta1", "1"),
        ("optim.beta2", "1.5"),
        ("optim.weight_decay", "-1"),
        *[
            (key, "nan")
            for key in (
                "surgery.align",
                "surgery.eps",
                "lora.alpha",
                "lora.dropout",
                "data.cache_gib",
                "optim.lr",
                "optim.beta1",
                "optim.beta2",
                "optim.weight_decay",
            )
        ],
    ],
)
def test_config__refuses_what_is_out_of_range(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"^{key}: found .*, expected"):
        TrainConfig().with_value(key, value)


def test_config__every_number_has_a_range() -> None:
    """A setting that is added without a range would take infinity or a huge integer."""
    content = TrainConfig().to_json()
    flat = {"seed": content["seed"]} | {
        f"{section}.{key}": value
        for section in ("surgery", "lora", "data", "optim", "schedule")
        for key, value in content[section].items()
    }
    numbers = [k for k, v in flat.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    assert len(numbers) > 12
    for key in numbers:
        with pytest.raises(UsageError, match=f"{key}: found"):
            TrainConfig().with_value(key, 1e30)


@pytest.mark.parametrize("targets", [5, [1, 2], [["q"]], "", ["o"]])
def test_config__refuses_odd_targets(targets: object) -> None:
    with pytest.raises(UsageError, match=r"lora\.targets: found"):
        TrainConfig().with_value("lora.targets", targets)


def test_from_json__wants_every_key() -> None:
    content = TrainConfig().to_json()
    del content["lora"]["alpha"]
    with pytest.raises(UsageError, match=r"lora\.alpha missing"):
        TrainConfig.from_json(content)
    for odd in ({}, 5, None):
        with pytest.raises(UsageError, match="missing"):
            TrainConfig.from_json(odd)


def test_with_value__keeps_every_digit_of_a_seed() -> None:
    for text in ("9007199254740993", str(2**63 - 1)):
        assert TrainConfig().with_value("seed", text).seed == int(text)
    assert TrainConfig().with_value("seed", "1e3").seed == 1000


def test_with_value__names_what_is_near() -> None:
    with pytest.raises(UsageError, match=r"setting 'optim\.learning_rate' is unknown; nearest: .*optim\."):
        TrainConfig().with_value("optim.learning_rate", 1)
