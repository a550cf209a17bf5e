"""docs/training.md stays complete and true where a test can tell."""

from __future__ import annotations

import re
from pathlib import Path

import click

from train.cli import cli
from train.config import TrainConfig
from train.run import FREE_SETTINGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(number: int) -> str:
    return next(text for text in SECTIONS if text.startswith(f"{number}. "))


def documented_settings() -> list[tuple[str, str]]:
    return re.findall(r"^\| `([a-z0-9_.]+)` \| `([^`]*)` \|", section(4), flags=re.MULTILINE)


def test_settings__are_all_documented_once_and_in_their_order() -> None:
    assert [key for key, _ in documented_settings()] == [key for key, _ in TrainConfig().flat()]


def test_settings__defaults_are_those_of_the_code_as_a_command_line_writes_them() -> None:
    default = TrainConfig()
    wrong = {key: text for key, text in documented_settings() if default.with_value(key, text) != default}
    assert wrong == {}
    assert all(text for _, text in documented_settings())


def test_settings_named_anywhere__exist() -> None:
    known = {key for key, _ in TrainConfig().flat()}
    for text in (PAGE, README):
        named = re.findall(r"(?<![\w/-])((?:surgery|lora|data|optim|schedule)\.[a-z][a-z0-9_]+)", text)
        assert named
        assert set(named) <= known


def test_resume__names_what_may_change() -> None:
    sentence = re.search(r"Only (.*?) may change\.", section(6), flags=re.DOTALL)
    assert sentence is not None
    assert re.findall(r"`([a-z_.]+)`", sentence[1]) == list(FREE_SETTINGS)


def test_choices__are_numbered_1_to_22() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\|.*\|.*\|$", section(3), flags=re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 23))


def test_flags__belong_to_a_command() -> None:
    known = {
        flag
        for command in cli.commands.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    foreign = {"--nproc-per-node", "--logdir"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known | foreign


def test_commands__exist() -> None:
    for text in (PAGE, README):
        assert set(re.findall(r"python -m train ([a-z-]+)", text)) <= set(cli.commands)


def test_links__lead_to_files_of_the_repository() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
        assert [target for target in targets if not (page.parent / target).exists()] == []
