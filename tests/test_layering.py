"""The rooms import each other only along the allowed edges, read from the source of every file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("kernels", "runtime", "train", "export")
ALLOWED = {
    "kernels": {"kernels"},
    "runtime": {"runtime"},
    "train": {"train", "runtime", "kernels"},
    "export": {"export", "train", "runtime"},
}
# torch reaches export through a checkpoint only, so that everything else there runs on a device without it.
TRAIN_IMPORTERS = {"export/checkpoint.py"}
FORBIDDEN = {"runtime": {"torch", "triton", "torchvision", "open_clip"}, "export": {"triton", "open_clip"}}


def imports_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they reach"
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (a.value.split(".")[0] for a in node.args if isinstance(a, ast.Constant))


def wrong_edges(room: str, source: str) -> set[str]:
    found = set(imports_of(source))
    return (found & set(ROOMS) - ALLOWED[room]) | (found & FORBIDDEN.get(room, set()))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms__import_only_along_the_allowed_edges(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): wrong_edges(room, f.read_text(encoding="utf-8")) for f in files}
    assert {name: edges for name, edges in wrong.items() if edges} == {}


def test_export__reaches_train_in_one_place_only() -> None:
    found = {
        str(f.relative_to(ROOT))
        for f in (ROOT / "export").rglob("*.py")
        if {"train", "torch"} & set(imports_of(f.read_text(encoding="utf-8")))
    }
    assert found == TRAIN_IMPORTERS


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("runtime", "import torch"),
        ("runtime", "from export.build import build_bundle"),
        ("kernels", "def f():\n    import runtime.spec"),
        ("train", "import importlib\nimportlib.import_module('export.cli')"),
    ],
)
def test_wrong_edges__sees_a_forbidden_import(room: str, source: str) -> None:
    assert wrong_edges(room, source)


def test_files__can_be_read_in_one_sitting() -> None:
    lengths = {
        str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines())
        for room in ROOMS
        for f in (ROOT / room).rglob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert {name for name in lengths if Path(name).name in vague} == set()


def test_rooms__shadow_nothing_of_the_standard_library() -> None:
    assert not set(ROOMS) & set(sys.stdlib_module_names)
