"""The engine half where torch is not: a Python 3.10 of its own adds an engine to a bundle and looks at it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from train.record import write_record

ROOT = Path(__file__).parent.parent.parent
# As on a device: everything that an edge machine installs, nothing of [train].
EXTRAS = "cpu,export,tensorrt-rtx"


def python310() -> Path | None:
    """Returns a Python 3.10 that runs: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = shutil.which("python3.10")
    for candidate in ([Path(found)] if found else []) + sorted(pyenv.glob("versions/3.10.*/bin/python3.10")):
        asked = subprocess.run([candidate, "--version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of Python 3.10 with dgsnet installed in it; returns its interpreter."""
    base = python310()
    if base is None:
        pytest.skip("no Python 3.10 is here")
    folder = tmp_path_factory.mktemp("python310")
    # From a copy: building a wheel writes into the folder that it builds.
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in ("runtime", "export", "train", "kernels"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([base, "-m", "venv", folder / "venv"], check=True, timeout=120)
    python = folder / "venv/bin/python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{source}[{EXTRAS}]"],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    if done.returncode != 0 and "No matching distribution" not in done.stderr:
        pytest.fail(done.stderr[-2000:])
    if done.returncode != 0:
        pytest.skip(f"pip cannot download here: {done.stderr.strip().splitlines()[-1][:200]}")
    return python


@pytest.mark.slow
def test_engine_half__builds_from_a_bundle_on_python_310_without_torch(
    environment: Path, fp32_onnx: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    subprocess.run(
        [sys.executable, "-m", "export", "build-engine", fp32_onnx, "-o", bundle, "-q"], cwd=ROOT, check=True
    )

    def run(*words: object) -> str:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            [environment, *words], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("-c", "import sys, importlib.util as u; print(sys.version_info[:2], u.find_spec('torch'))")
    assert said.strip() == "(3, 10) None"
    plan = json.loads(
        run("-m", "export", "build-engine", bundle, "--backend", "tensorrt-rtx", "--plan", "--json")
    )
    assert plan["fits"]
    report = json.loads(
        run(
            "-m", "export", "build-engine", bundle, "--backend", "tensorrt-rtx", "--target", "sm_86", "--json"
        )
    )
    (engine,) = report["engines"]
    assert engine["profiles"] == [[1, 8, 32], [1, 1, 1]]
    facts = json.loads(run("-m", "export", "inspect", bundle / engine["file"], "--json"))
    assert (facts["backend"], facts["bundle"]["intact"]) == ("tensorrt-rtx", True)
    assert json.loads(run("-m", "export", "inspect", bundle, "--json"))["engines"][-1]["intact"]
    assert json.loads(run("-m", "export", "doctor", "--for", "tensorrt-rtx:build", "--json"))
    (tmp_path / "run").mkdir()
    fitted = {"threshold": 0.75, "temperature": 2.0, "uncertain": [0.5, 0.5]}
    write_record(tmp_path / "run", {"schema": 1, "decision": fitted, "weights_sha256": "0" * 64})
    change = run("-m", "export", "set-decision", bundle, "--from", tmp_path / "run", "--json")
    assert json.loads(change)["after"] == fitted
    run("-m", "export", "verify", bundle)
    run("-m", "runtime", "selftest", bundle)
