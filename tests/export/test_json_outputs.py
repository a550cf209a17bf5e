"""docs/json.md against what the commands print: every key is documented, every documented key exists."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from export.cli import cli as export_cli
from runtime.cli import cli as runtime_cli

PAGE = Path(__file__).parent.parent.parent / "docs" / "json.md"


@cache
def documented() -> dict[str, list[str]]:
    """Returns the patterns of keys under each heading."""
    sections: dict[str, list[str]] = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        cells = re.findall(r"^\| (`.+?) \|", body, flags=re.MULTILINE)
        spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
        sections[heading.strip("` ")] = [pattern for span in spans for pattern in expanded(span)]
    return sections


def expanded(span: str) -> Iterator[str]:
    """Yields what braces stand for: a.{b,c} is a.b and a.c."""
    parts = re.split(r"\{([^}]*)\}", span)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    for chosen in itertools.product(*choices):
        yield "".join(chosen)


def key_paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the names on the way to every value that is no object or list, and to empty ones."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from key_paths(below, (*path, key))
    elif isinstance(value, list) and value:
        for below in value:
            yield from key_paths(below, (*path, "[]"))
    else:
        yield path


def fits(path: tuple[str, ...], pattern: str) -> bool:
    """Whether a path is what a pattern names: * is any one name, ** anything below.

    A value that is null or empty where the pattern goes on fits too.
    """
    names = pattern.removesuffix("?").replace("[]", ".[]").split(".")
    if names[-1] == "**":
        names = names[:-1] + list(path[len(names) - 1 :])
    return len(path) <= len(names) and all(
        name in ("*", found) for name, found in zip(names, path, strict=False)
    )


def differences(section: str, content: Any) -> list[str]:
    """Returns what the page does not name, and what it names that is not there."""
    patterns = documented()[section]
    paths = list(dict.fromkeys(key_paths(content)))
    found = [
        f"not documented: {'.'.join(path)}" for path in paths if not any(fits(path, p) for p in patterns)
    ]
    missing = [
        f"documented, not there: {pattern}"
        for pattern in patterns
        if not pattern.endswith("?") and not any(fits(path, pattern) for path in paths)
    ]
    return found + missing


def test_differences__are_seen() -> None:
    assert differences("runtime selftest --json", {"schema": 1, "foreign": 2})[0] == "not documented: foreign"
    assert "documented, not there: passed" in differences("runtime selftest --json", {"schema": 1})
    nulls = {"a": None, "b": [], "c": [{"d.e": 1}, {"d.e": 2}]}
    assert list(key_paths(nulls)) == [("a",), ("b",), ("c", "[]", "d.e"), ("c", "[]", "d.e")]
    assert fits(("a",), "a.b[].c")
    assert not fits(("a", "b"), "a")
    assert fits(("c", "[]", "d.e"), "c[].*")
    assert fits(("c", "[]", "d.e"), "c.**")
    assert not fits(("d",), "c.**")
    assert list(expanded("x.{a,b}.y")) == ["x.a.y", "x.b.y"]


def printed(cli: Any, *arguments: object) -> Any:
    outcome = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    assert outcome.stdout, (outcome.exception, outcome.output)
    return json.loads(outcome.stdout)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.effect_noise((70, 90), 60).convert("RGB").save(path)
    return path


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ("runtime predict --json", ("predict", "BUNDLE", "PICTURE", "-q")),
        ("runtime bench --json", ("bench", "BUNDLE", "--runs", 1, "--pictures", 2, "--batches", "1")),
        ("runtime info --json", ("info", "BUNDLE")),
        ("runtime selftest --json", ("selftest", "BUNDLE")),
    ],
)
def test_runtime__prints_what_the_page_says(
    section: str, arguments: tuple[object, ...], sound: Path, picture: Path
) -> None:
    given = [{"BUNDLE": sound, "PICTURE": picture}.get(str(word), word) for word in arguments]
    assert differences(section, printed(runtime_cli, *given, "--json")) == []


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ("export verify --json", ("verify", "BUNDLE")),
        ("export inspect --json", ("inspect", "BUNDLE")),
        ("export doctor --json", ("doctor",)),
        ("export parity --json", ("parity", "BUNDLE", "-q", "--checkpoint", "RUN", "--data", "DATA")),
        ("export parity --against --json", ("parity", "BUNDLE", "-q", "--against", "BUNDLE")),
    ],
)
def test_export__prints_what_the_page_says(
    section: str, arguments: tuple[object, ...], sound: Path, run_folder: Path, data_set: Path
) -> None:
    places = {"BUNDLE": sound, "RUN": run_folder, "DATA": data_set / "test"}
    given = [places.get(str(word), word) for word in arguments]
    assert differences(section, printed(export_cli, *given, "--json")) == []


def test_set_decision__prints_what_the_page_says(bundle: Path) -> None:
    content = printed(export_cli, "set-decision", bundle, "--threshold", 0.9, "--json")
    assert differences("export set-decision --json", content) == []
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert differences("manifest.json", manifest) == []


def test_manifest__holds_what_the_page_says(sound: Path) -> None:
    assert differences("manifest.json", json.loads((sound / "manifest.json").read_text())) == []
