"""From a bundle to a TensorRT engine, on a fake device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import opening, selection
from runtime.backends.opening import BackendOptions, open_backend
from runtime.backends.selection import select_engine
from runtime.backends.tensorrt import engine_host
from runtime.bundle.manifest import parse_manifest
from runtime.bundle.opening import open_bundle
from runtime.cuda.cuda_python import CudaPython
from runtime.detector import Detector
from runtime.errors import MissingDependencyError, UsageError
from runtime.machine import CudaDevice, cuda_device
from tests.runtime.fakes.cuda_driver import fake_driver
from tests.runtime.fakes.device import FakeDevice
from tests.runtime.fakes.plans import fake_plan
from tests.runtime.fakes.tensorrt_module import fake_tensorrt

VERSIONS = {"tensorrt": "10.3.0.26", "tensorrt-rtx": "1.7.1.116"}


@pytest.fixture
def fake_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeDevice, str], Any]:
    """Makes this machine look as if it had the fake device and one TensorRT."""

    def pretend(device: FakeDevice, backend: str) -> Any:
        module = fake_tensorrt(device, rtx=backend == "tensorrt-rtx", version=VERSIONS[backend])
        name, target = device.name, "sm_" + "".join(map(str, device.capability))
        monkeypatch.setattr(engine_host, "import_tensorrt", lambda name: module)
        monkeypatch.setattr(opening, "load_cuda", lambda name: CudaPython(fake_driver(device)))
        monkeypatch.setattr(selection, "cuda_device", lambda: CudaDevice(name, target))
        monkeypatch.setattr(selection, "import_tensorrt", lambda name: module)
        monkeypatch.setattr(selection, "missing_binding", lambda name: None)
        monkeypatch.setattr(selection, "installed_version", lambda *names: None)
        monkeypatch.setattr(selection.importlib.util, "find_spec", lambda name: object())
        return module

    return pretend


@pytest.fixture
def write_engine_bundle(
    write_tiny_bundle: Callable[..., Path],
    engine_entry: Callable[..., dict[str, Any]],
    reseal: Any,
    tmp_path: Path,
) -> Callable[[str], Path]:
    """Writes the tiny bundle with an engine of the fake TensorRT beside the graph."""

    def write(backend: str) -> Path:
        facts = {
            "backend": backend,
            "profiles": [[1, 4, 8], [1, 1, 1]],
            "targets": ["sm_87"],
            "version": VERSIONS[backend],
            "gpu": "Fake GPU" if backend == "tensorrt" else None,
        }
        engines = [engine_entry("model.onnx", "onnxruntime"), engine_entry("engines/e.engine", **facts)]
        folder = write_tiny_bundle(tmp_path / backend, engines=engines)
        plan = fake_plan(backend, VERSIONS[backend], ((1, 4, 8), (1, 1, 1)))
        (folder / "engines" / "e.engine").write_bytes(plan)
        reseal(folder)
        return folder

    return write


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_detector__auto_takes_the_engine_and_agrees_with_onnxruntime(
    write_engine_bundle: Any, fake_machine: Any, pictures: list[Path], backend: str
) -> None:
    folder, device = write_engine_bundle(backend), FakeDevice()
    fake_machine(device, backend)
    with Detector.open(folder) as detector:
        assert detector.backend_report.name == detector.backend.name == f"{backend}:sm_87"
        found = detector.predict(pictures)
    assert device.leaks() == []
    with Detector.open(folder, "onnxruntime:cpu") as detector:
        expected = detector.predict(pictures)
    assert [verdict.error for verdict in found] == [None] * len(pictures)
    assert np.allclose([v.logit for v in found], [v.logit for v in expected], atol=1e-4)
    assert [v.label for v in found] == [v.label for v in expected]


def test_rtx__keeps_its_compiled_kernels_in_the_users_cache(
    write_engine_bundle: Any, fake_machine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, cache = write_engine_bundle("tensorrt-rtx"), tmp_path / "kernels"

    def open_once(kernels: str = "eager") -> Any:
        device = FakeDevice()
        module = fake_machine(device, "tensorrt-rtx")
        with open_bundle(folder, verify="off") as bundle:
            report = select_engine(bundle.manifest, "tensorrt-rtx")
            options = BackendOptions(cache_dir=cache, rtx_kernels=kernels)
            open_backend(bundle, report, options).close()
        assert device.leaks() == []
        return module.configs[-1]

    config = open_once()
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert config.cache.blob is None
    [path] = (cache / "rtx-kernels").iterdir()
    assert path.read_bytes() == b"kernels v1"
    assert open_once().cache.blob == b"kernels v1"
    path.write_bytes(b"of another driver")
    logging.getLogger("dgsnet").propagate = True
    caplog.set_level(logging.INFO, "dgsnet")
    assert open_once().cache.blob is None
    assert "another driver" in caplog.text
    assert path.read_bytes() == b"kernels v1"
    assert open_once("lazy").dynamic_shapes_kernel_specialization_strategy.name == "LAZY"
    assert len(list((cache / "rtx-kernels").iterdir())) == 2


def test_open_backend__opens_onnxruntime(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        report = select_engine(opened.manifest)
        with open_backend(opened, report, BackendOptions(threads=1)) as backend:
            assert (backend.name, backend.profile) == ("onnxruntime:cpu", (1, 4, 8))
        with open_backend(opened, report, BackendOptions(cuda_graphs=False)):
            pass


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("onnxruntime", {"zero_copy": True}, "zero-copy: found True, which onnxruntime does not have"),
        ("onnxruntime", {"cuda_graphs": True}, "cuda-graphs: found True"),
        (
            "onnxruntime",
            {"contexts": 2},
            "contexts: found 2, .* engine of tensorrt or tensorrt-rtx; leave it",
        ),
        ("tensorrt", {"threads": 2}, "threads: found 2, which tensorrt does not have"),
        ("tensorrt", {"rtx_kernels": "lazy"}, "rtx-kernels: found 'lazy'"),
    ],
)
def test_open_backend__refuses_options_that_act_on_nothing(
    write_engine_bundle: Any, fake_machine: Any, backend: str, options: Any, message: str
) -> None:
    folder, device = write_engine_bundle("tensorrt" if backend == "onnxruntime" else backend), FakeDevice()
    fake_machine(device, "tensorrt" if backend == "onnxruntime" else backend)
    with open_bundle(folder, verify="off") as opened:
        report = select_engine(opened.manifest, backend if backend != "onnxruntime" else "onnxruntime:cpu")
        with pytest.raises(UsageError, match=message):
            open_backend(opened, report, BackendOptions(**options))
    assert device.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuda_api": "cupy"}, "cuda-api: found 'cupy'"),
        ({"contexts": 0}, "contexts: found 0, expected 1 to 64"),
        ({"rtx_kernels": "jit"}, "rtx-kernels: found 'jit'"),
    ],
)
def test_backend_options__refuse_what_is_no_choice(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BackendOptions(**options)


def test_auto__on_this_machine_ends_on_onnxruntime_with_a_reason_each(write_engine_bundle: Any) -> None:
    if cuda_device() is not None:
        pytest.skip("this machine has a CUDA device")
    manifest = parse_manifest((write_engine_bundle("tensorrt-rtx") / "manifest.json").read_bytes())
    report = select_engine(manifest)
    assert report.name == "onnxruntime:cpu"
    assert [(r.candidate, bool(r.reason)) for r in report.rejected] == [
        ("tensorrt", True),
        ("tensorrt-rtx e", True),
        ("onnxruntime:cuda", True),
    ]
    with pytest.raises(MissingDependencyError, match="tensorrt-rtx"):
        select_engine(manifest, "tensorrt-rtx")
