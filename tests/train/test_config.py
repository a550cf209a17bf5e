"""Settings: their types, their ranges, their round trips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import UsageError
from train.config import StoredConfig, TrainConfig, config_from_toml, stored_config
from train.config.stored import shapes_model


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


def without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Removes dotted keys, in place."""
    for key in keys:
        section, _, leaf = key.rpartition(".")
        del (content[section] if section else content)[leaf]
    return content


def test_stored_config__whatever_only_trains_may_be_absent_and_is_named() -> None:
    """Over every setting there is, so that one that is added later must decide what it is."""
    for key, value in TrainConfig().flat():
        content = without(TrainConfig().to_json(), key)
        if shapes_model(key) and key not in ("surgery.text_head", "surgery.text_hidden"):
            with pytest.raises(UsageError, match=rf"settings: {key} missing, .* shapes the model"):
                stored_config(content)
            continue
        found = stored_config(content)
        assert dict(found.config.flat())[key] == value
        assert found.absent == (() if shapes_model(key) else (key,))


def test_stored_config__keeps_what_is_stated_and_takes_the_rest_from_this_version() -> None:
    config = TrainConfig(seed=7).with_values([("data.batch", 8), ("optim.lr", 0.5), ("lora.r", 3)])
    found = stored_config(without(config.to_json(), "data.jpeg", "schedule"))
    assert found.config == config
    assert found.absent[0] == "data.jpeg"
    assert {key.partition(".")[0] for key in found.absent[1:]} == {"schedule"}
    assert stored_config(config.to_json()) == StoredConfig(config)


def test_stored_config__a_section_where_this_version_has_a_setting_is_unknown() -> None:
    content = TrainConfig().to_json() | {"seed": {"torch": 1}}
    with pytest.raises(UsageError, match=r"'seed\.torch' is unknown"):
        stored_config(content)


def test_stored_config__a_head_from_before_the_setting_is_what_it_was_then() -> None:
    """Not the default, which may change."""
    found = stored_config(without(TrainConfig().to_json(), "surgery.text_head", "surgery.text_hidden"))
    assert (found.config.surgery.text_head, found.config.surgery.text_hidden) == ("linear", 0)
    assert found.absent == ()


@pytest.mark.parametrize("section", ["data", "optim", "schedule"])
def test_stored_config__passes_over_what_a_later_version_says_of_training(section: str) -> None:
    content = TrainConfig().to_json()
    content[section]["newer"] = 5
    assert stored_config(content) == StoredConfig(TrainConfig(), (), (f"{section}.newer",))


@pytest.mark.parametrize("section", ["surgery", "lora"])
def test_stored_config__refuses_what_it_does_not_know_where_models_are_shaped(section: str) -> None:
    content = TrainConfig().to_json()
    content[section]["newer"] = 5
    with pytest.raises(UsageError, match=rf"'{section}\.newer' is unknown"):
        stored_config(content)


def test_stored_config__refuses_values_as_a_command_line_does() -> None:
    content = TrainConfig().to_json()
    content["data"]["batch"] = "many"
    with pytest.raises(UsageError, match=r"data\.batch: found 'many'"):
        stored_config(content)


def test_with_value__keeps_every_digit_of_a_seed() -> None:
    for text in ("9007199254740993", str(2**63 - 1)):
        assert TrainConfig().with_value("seed", text).seed == int(text)
    assert TrainConfig().with_value("seed", "1e3").seed == 1000


def test_with_value__names_what_is_near() -> None:
    with pytest.raises(UsageError, match=r"setting 'optim\.learning_rate' is unknown; nearest: .*optim\."):
        TrainConfig().with_value("optim.learning_rate", 1)
