"""Telemetry of ONNX Runtime's wheels stays off: nothing is written below the user's home folder."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime.backends.onnx_session import import_onnxruntime

ROOT = Path(runtime.__file__).parent.parent
SWITCH = "ORT_DISABLE_TELEMETRY"


def files_at_home(home: Path, *arguments: object) -> list[Path]:
    """Runs Python with an empty home folder; returns what lies in it afterwards."""
    home.mkdir()
    inherited = {k: v for k, v in os.environ.items() if k not in (SWITCH, "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=inherited | {"HOME": str(home)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [path for path in home.rglob("*") if path.is_file()]


def test_predict__leaves_the_home_folder_empty(bundle: Path, pictures: list[Path], tmp_path: Path) -> None:
    assert files_at_home(tmp_path / "home", "-m", "runtime", "predict", bundle, pictures[0]) == []


def test_import_onnxruntime__respects_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in (("0", "0"), (None, "1")):
        monkeypatch.delenv(SWITCH, raising=False)
        if found is not None:
            monkeypatch.setenv(SWITCH, found)
        import_onnxruntime()
        assert os.environ[SWITCH] == expected


def test_onnxruntime__is_imported_in_one_place() -> None:
    rooms = ("runtime", "export", "train", "kernels", "benchmarks", "tools")
    found = {
        path.relative_to(ROOT).as_posix()
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if "onnxruntime" in _imported(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == {"runtime/backends/onnx_session.py"}


def _imported(tree: ast.Module) -> set[str]:
    """Returns the packages that a module imports when it runs; submodules follow their package's import."""
    return {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
