"""What the commands of export leave in the user's home folder: nothing, ONNX Runtime's telemetry included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import export

ROOT = Path(export.__file__).parent.parent


@pytest.mark.parametrize(
    "command", ["doctor", "parity", pytest.param("build-engine", marks=pytest.mark.slow)]
)
def test_commands__leave_the_home_folder_empty(
    command: str, sound: Path, run_folder: Path, tmp_path: Path
) -> None:
    words = {
        "doctor": [],
        "parity": [sound],
        "build-engine": [run_folder, "-o", tmp_path / "bundle", "--max-batch", "2"],
    }[command]
    home = tmp_path / "home"
    home.mkdir()
    left_out = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in left_out} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "export", command, *map(str, words)],
        cwd=ROOT, env=environment, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
