"""Fixtures that several rooms share: a small labelled data set and a run trained on it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Test files import onnxruntime without the runtime, which would switch its telemetry off.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TINY_SETTINGS = (
    "data.batch=8",
    "schedule.stage1_epochs=1",
    "schedule.stage2_epochs=2",
    "optim.lr=0.002",
    "lora.dropout=0.1",
)


def write_picture(path: Path, *, label: int, seed: int, side: int = 256) -> None:
    """Writes a PNG: noise for real, the same noise blurred by up-sampling for generated."""
    draw = np.random.default_rng(seed)
    if label:
        small = draw.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR))
    else:
        picture = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache; child processes inherit the variable."""
    os.environ["DGSNET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _log_level_as_it_was() -> Iterator[None]:
    """A command with -q silences the logger of the process, which other tests listen to."""
    logger = logging.getLogger("dgsnet")
    level, propagate = logger.level, logger.propagate
    yield
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture(scope="session")
def make_data_set() -> Callable[[Path], Path]:
    """Writes train, val and test of one family below a folder, with captions."""

    def make(root: Path) -> Path:
        captions = {}
        for split, count, start in (("train", 12, 0), ("val", 6, 100), ("test", 6, 200)):
            for label, folder in enumerate(("0_real", "1_fake")):
                for index in range(count):
                    key = f"{split}/blur/{folder}/{index:03d}.png"
                    write_picture(root / key, label=label, seed=start + 2 * index + label)
                    captions[key] = f"a photo of texture number {index}"
        (root / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
        return root

    return make


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory, make_data_set: Callable[[Path], Path]) -> Path:
    """A small data set that every test may read and none may change."""
    return make_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, data_set: Path) -> Path:
    """A run of the demo's backbone on the small data set; adapters have moved away from zero."""
    from train.config import TrainConfig
    from train.fit_options import FitOptions
    from train.run import fit_run

    config = TrainConfig(backbone="dgsnet-tiny-p32", pretrained="random", seed=7)
    for item in TINY_SETTINGS:
        key, _, value = item.partition("=")
        config = config.with_value(key, value)
    run = tmp_path_factory.mktemp("run")
    fit_run(data_set, run, config, FitOptions(tensorboard=False))
    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs hardware that is absent, and says why."""
    for item in items:
        if item.get_closest_marker("gpu") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, none is here"))
        if item.get_closest_marker("tensorrt") and not _has_tensorrt():
            item.add_marker(pytest.mark.skip(reason="needs TensorRT proper and a GPU, not here"))


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:  # the runtime's tests also run where torch is not installed
        return False
    return torch.cuda.is_available()


def _has_tensorrt() -> bool:
    import importlib.util

    return _has_cuda() and importlib.util.find_spec("tensorrt") is not None
