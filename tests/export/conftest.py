"""Fixtures of the export room: a hand-made contract graph, and a sound bundle of the shared run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.export.vit_graph import mosaics, vit_model

if TYPE_CHECKING:
    from export.checkpoint import CheckpointSource


@pytest.fixture
def fp32_onnx(tmp_path: Path) -> Path:
    """A contract graph on disk, FP32, two blocks."""
    import onnx

    path = tmp_path / "model.onnx"
    onnx.save(vit_model(), path)
    return path


@pytest.fixture(scope="session")
def vit() -> Any:
    """The maker of contract graphs, ``vit_model``."""
    return vit_model


@pytest.fixture
def images() -> np.ndarray:
    """Three mosaics of noise."""
    return mosaics(3)


@pytest.fixture(scope="session")
def checkpoint(run_folder: Path) -> CheckpointSource:
    """The shared run, loaded once."""
    from export.checkpoint import CheckpointSource

    return CheckpointSource(run_folder)


@pytest.fixture(scope="session")
def sound(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle of the shared run that every test may read and none may change: ``bundle`` is a copy."""
    from export.build import BundleOptions, build_bundle
    from export.engine.options import BuildOptions

    target = tmp_path_factory.mktemp("sound") / "bundle"
    build_bundle(run_folder, target, BundleOptions(engine=BuildOptions(profiles=((1, 2, 4),))))
    before = _state(target)
    yield target
    assert _state(target) == before, "a test changed the bundle that all tests share"


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound bundle that the test may change."""
    return shutil.copytree(sound, tmp_path / "bundle")


@pytest.fixture
def parity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``export parity`` in this process and returns exit code, standard output and standard error."""
    from export.__main__ import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export", "parity", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return run


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Returns every file below a folder with its size and time of change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
