"""A fake machine: one engine file, a fake TensorRT, and a CUDA binding over the fake device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.tensorrt import engine_host
from runtime.backends.tensorrt.engine_host import EngineFile
from runtime.backends.tensorrt.session import TensorRtSession
from runtime.bundle.engine_entry import EngineEntry
from runtime.cuda.cuda_python import CudaPython
from runtime.cuda.pycuda_api import PyCuda
from tests.runtime.fakes.cuda_driver import fake_driver
from tests.runtime.fakes.device import FakeDevice
from tests.runtime.fakes.plans import EMBED_DIM, compute, fake_plan
from tests.runtime.fakes.pycuda_driver import fake_pycuda
from tests.runtime.fakes.tensorrt_module import fake_tensorrt

VERSIONS = {"tensorrt": "10.3.0.26", "tensorrt-rtx": "1.7.1.116"}
TWO_PROFILES = ((1, 4, 8), (1, 1, 1))


@dataclass
class Rig:
    """A fake machine with one engine file."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    backend: str = "tensorrt"
    profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),)
    device: FakeDevice = field(default_factory=FakeDevice)
    pycuda: bool = False
    plan: dict[str, Any] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)
    kernels: str = "eager"
    module: Any = None

    def file(self) -> EngineFile:
        path = self.folder / "e.engine"
        plan = {"profiles": self.profiles} | self.plan
        path.write_bytes(fake_plan(self.backend, VERSIONS[self.backend], **plan))
        target = "sm_" + "".join(map(str, self.device.capability))
        facts: dict[str, Any] = {
            "file": "engines/e.engine",
            "backend": self.backend,
            "precision": "fp16",
            "profiles": self.profiles,
            "targets": (target,),
            "version": VERSIONS[self.backend],
            "gpu": "Fake GPU",
            "driver": "cuda 12.6",
            "verified": "not-run",
        }
        host_code = self.entry.get("allow_host_code", False)
        changes = {key: value for key, value in self.entry.items() if key != "allow_host_code"}
        entry = EngineEntry(**(facts | changes))
        cache = self.folder / "cache"
        return EngineFile(path, entry, EMBED_DIM, "0" * 64, cache, host_code, self.kernels)

    @contextmanager
    def session(self, **options: Any) -> Iterator[TensorRtSession]:
        opened = self.open(**options)
        try:
            yield opened
        finally:
            opened.close()

    def open(self, **options: Any) -> TensorRtSession:
        rtx = self.backend == "tensorrt-rtx"
        self.module = self.module or fake_tensorrt(self.device, rtx=rtx, version=VERSIONS[self.backend])
        self.monkeypatch.setattr(engine_host, "import_tensorrt", lambda backend: self.module)
        cuda = PyCuda(fake_pycuda(self.device)) if self.pycuda else CudaPython(fake_driver(self.device))
        return TensorRtSession(self.file(), cuda, **options)


def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    """Returns what makes machines in ``tmp_path``, with our log where caplog sees it."""
    monkeypatch.setattr(logging.getLogger("dgsnet"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("dgsnet"), "level", logging.INFO)
    return lambda **changes: Rig(tmp_path, monkeypatch, **changes)


def assert_right(session: TensorRtSession, images: np.ndarray) -> None:
    logit, embedding = session.run(images)
    expected = compute(images)
    assert np.array_equal(logit, expected[0])
    assert np.array_equal(embedding, expected[1])
