"""A locale without UTF-8: what cannot be named is one line that says what to set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime.backends.onnx_session import OnnxSession, text_path
from runtime.errors import UsageError

ROOT = Path(runtime.__file__).parent.parent
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def predict(bundle: Path, picture: Path, **changes: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: os.environ[name] for name in ("DGSNET_CACHE", "PATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "runtime", "predict", "-q", bundle, picture],
        cwd=ROOT, env=kept | PLAIN_C | changes, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def test_predict__names_the_setting_where_the_locale_cannot_name_the_bundle(
    bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    named = shutil.copytree(bundle, tmp_path / "b\xfcndel")
    done = predict(named, pictures[0])
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert line.endswith("model.onnx: this locale cannot name the path to onnxruntime; set PYTHONUTF8=1")
    done = predict(named, pictures[0], PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, b"")


def test_predict__judges_any_picture_in_such_a_locale(
    bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    picture = shutil.copy(pictures[0], tmp_path / "p\xfc.png")
    done = predict(bundle, picture)
    assert (done.returncode, done.stderr) == (0, b"")


def test_onnx_session__says_that_no_locale_names_such_a_path(bundle: Path, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.onnx")
    shutil.copy(bundle / "model.onnx", path)
    with pytest.raises(UsageError, match=r"caf.\.onnx: onnxruntime opens no path that is not UTF-8; rename"):
        OnnxSession(os.fsdecode(path), device="cpu", embed_dim=4, profile=(1, 4, 8))
    assert text_path(Path("caf\xe9.onnx")) == "caf\xe9.onnx"
