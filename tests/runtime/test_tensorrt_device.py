"""The TensorRT backend on a real GPU. Never run where this was written: there was none.

The engine is built on the spot, by TensorRT-RTX on an RTX GPU and by TensorRT proper on any; running it needs
cuda-python.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.base import Backend
from runtime.backends.opening import BackendOptions, open_backend
from runtime.backends.selection import select_engine
from runtime.bundle.opening import open_bundle
from runtime.machine import cuda_device

# FP32 engine against numpy in float64 with no TF32: sums of 50176 pixels in another order.
TOLERANCE = 2e-3


def build_here(folder: Path, backend: str, reseal: Callable[..., None]) -> None:
    """Builds an engine of the bundle's graph on this GPU and lists it in the manifest."""
    import json

    from export.engine.builder import build_engine
    from export.engine.options import BuildOptions

    device = cuda_device()
    assert device is not None
    options = BuildOptions(precision="fp32", profiles=((1, 4, 8), (1, 1, 1)), targets=(device.target,))
    (folder / "engines").mkdir()
    built = build_engine(folder / "model.onnx", folder / "engines" / "e.engine", options, backend=backend)
    engines = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["engines"]
    reseal(folder, engines=[*engines, built.entry("engines/e.engine").to_json()])


@pytest.fixture(params=[pytest.param("tensorrt", marks=pytest.mark.tensorrt), "tensorrt-rtx"])
def built(request: pytest.FixtureRequest, bundle: Path, reseal: Any) -> tuple[Path, str]:
    backend = str(request.param)
    if backend == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed here")
    else:
        pytest.importorskip("tensorrt", reason="TensorRT proper is not installed here")
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed here")
    build_here(bundle, backend, reseal)
    return bundle, backend


@pytest.fixture
def opened(built: tuple[Path, str], tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    folder, backend = built
    backends = []
    with open_bundle(folder) as bundle:
        report = select_engine(bundle.manifest, backend)

        def open_with(**options: Any) -> Backend:
            backends.append(open_backend(bundle, report, BackendOptions(cache_dir=tmp_path, **options)))
            return backends[-1]

        yield open_with
        for opened_backend in backends:
            opened_backend.close()


@pytest.fixture
def mosaics() -> np.ndarray:
    return np.random.default_rng(23).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_run__equals_numpy_at_every_batch_size(
    opened: Any, mosaics: np.ndarray, tiny_reference: Any, graphs: bool
) -> None:
    backend = opened(cuda_graphs=graphs)
    for count in (8, 1, 3, 8, 1, 3, 2):
        logit, embedding = backend.run(mosaics[:count])
        expected = tiny_reference(mosaics[:count])
        assert np.abs(logit - expected[0]).max() < TOLERANCE
        assert np.abs(embedding - expected[1]).max() < TOLERANCE


@pytest.mark.gpu
def test_run__serves_threads_with_two_contexts(opened: Any, mosaics: np.ndarray, tiny_reference: Any) -> None:
    backend = opened(contexts=2)
    worst: list[float] = []

    def work(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(20):
            count = int(draw.integers(1, 9))
            rows = draw.permutation(8)[:count]
            logit, _ = backend.run(mosaics[rows])
            worst.append(float(np.abs(logit - tiny_reference(mosaics[rows])[0]).max()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 80
    assert max(worst) < TOLERANCE


@pytest.mark.gpu
def test_open__ten_times_holds_no_more_memory(opened: Any, mosaics: np.ndarray) -> None:
    from cuda.bindings import driver

    def free_bytes() -> int:
        # The context is kept here so that every reading is of the same one.
        status, free, _total = driver.cuMemGetInfo()
        assert status == driver.CUresult.CUDA_SUCCESS
        return int(free)

    _, device = driver.cuDeviceGet(0)
    _, context = driver.cuDevicePrimaryCtxRetain(device)
    driver.cuCtxSetCurrent(context)
    try:
        readings = []
        for _ in range(10):
            backend = opened()
            backend.run(mosaics)
            backend.close()
            readings.append(free_bytes())
        # The first openings load kernels that the driver keeps; after them nothing may be lost.
        assert readings[-1] >= readings[2] - (8 << 20)
    finally:
        driver.cuCtxSetCurrent(driver.CUcontext(0))
        driver.cuDevicePrimaryCtxRelease(device)


@pytest.mark.gpu
def test_torch__keeps_its_context_beside_the_engine(opened: Any, mosaics: np.ndarray) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed here")
    before = torch.arange(1000, device="cuda").sum()
    backend = opened()
    logit, _ = backend.run(mosaics[:2])
    assert np.isfinite(logit).all()
    backend.close()
    assert int(torch.arange(1000, device="cuda").sum()) == int(before) == 499500


@pytest.mark.gpu
def test_zero_copy__works_where_the_gpu_is_integrated(
    opened: Any, mosaics: np.ndarray, tiny_reference: Any
) -> None:
    from runtime.cuda.loading import load_cuda

    if not load_cuda("cuda-python").open_device().integrated:
        pytest.skip("this GPU has memory of its own")
    logit, _ = opened(zero_copy=True).run(mosaics)
    assert np.abs(logit - tiny_reference(mosaics)[0]).max() < TOLERANCE
