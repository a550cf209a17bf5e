"""Loading a CUDA binding, its errors, and giving back what was taken."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from runtime.cuda import loading
from runtime.cuda.cuda_python import CudaPython
from runtime.cuda.interface import Stream
from runtime.cuda.loading import load_cuda, missing_binding
from runtime.cuda.pycuda_api import PyCuda
from runtime.cuda.releases import Releases, drop_locals
from runtime.errors import EngineLoadError, MissingDependencyError, UsageError
from runtime.machine import cuda_device
from tests.runtime.fakes.cuda_driver import fake_driver
from tests.runtime.fakes.device import FakeDevice
from tests.runtime.fakes.pycuda_driver import fake_pycuda


def test_load_cuda__refuses_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="found 'cupy', expected one of cuda-python, pycuda"):
        load_cuda("cupy")


def test_load_cuda__says_how_to_install_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("cuda-python", "cuda.bindings.driver"), ("pycuda", "pycuda.driver")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingDependencyError, match=f"^{name} does not import .*pip install"):
            load_cuda(name)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    assert "cuda-python is not installed" in (missing_binding("cuda-python") or "")


def test_load_cuda__loads_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake_pycuda(FakeDevice()))
    assert load_cuda("pycuda").name == "pycuda"
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed here")
    assert load_cuda("cuda-python").name == "cuda-python"
    assert missing_binding("cuda-python") is None


def test_cuda_python__without_a_driver_says_so_in_one_line() -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed here")
    if cuda_device() is not None:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(MissingDependencyError, match=r"no CUDA device is usable here .*cuInit") as caught:
        load_cuda("cuda-python").open_device()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_open_device__tells_what_is_there(binding: str) -> None:
    def opened(device: FakeDevice) -> object:
        return (
            PyCuda(fake_pycuda(device)) if binding == "pycuda" else CudaPython(fake_driver(device))
        ).open_device()

    found = opened(FakeDevice("Orin", (8, 7), integrated=True))
    assert str(found) == "Device(name='Orin', target='sm_87', integrated=True, maps_host_memory=True)"
    assert "target='sm_120', integrated=False" in str(opened(FakeDevice(capability=(12, 0))))
    with pytest.raises(MissingDependencyError, match="found no device"):
        opened(FakeDevice(count=0))
    with pytest.raises(MissingDependencyError, match="no CUDA device is usable"):
        opened(FakeDevice(fail_at=0))


def test_cuda_python__names_the_call_and_the_error() -> None:
    device = FakeDevice()
    cuda = CudaPython(fake_driver(device))
    with pytest.raises(EngineLoadError, match="cuStreamSynchronize failed: CUDA_ERROR_UNKNOWN, a fake error"):
        cuda.synchronize(Stream(5, 5))
    assert device.violations


def test_pycuda__refuses_graphs_by_name() -> None:
    cuda = PyCuda(fake_pycuda(FakeDevice()))
    with pytest.raises(UsageError, match="cuda-api pycuda: it has no CUDA graphs, expected cuda-python"):
        cuda.begin_capture(Stream(5, 5))
    with pytest.raises(UsageError, match="no zero-copy buffers"):
        cuda.allocate_pinned(8, mapped=True)


def test_releases__run_all_in_reverse_and_raise_the_first_failure() -> None:
    done: list[int] = []

    def release(number: int) -> None:
        done.append(number)
        if number in (1, 2):
            raise ValueError(f"release {number}")

    releases = Releases()
    for number in range(4):
        releases.add(lambda number=number: release(number))
    with pytest.raises(ValueError, match="release 2"):
        releases.close()
    assert done == [3, 2, 1, 0]
    releases.close()
    assert done == [3, 2, 1, 0]


def test_drop_locals__lets_go_of_what_an_error_passed_through() -> None:
    died: list[str] = []

    class Held:
        def __del__(self) -> None:
            died.append("held")

    def inner() -> None:
        held = Held()
        raise ValueError(f"with {type(held).__name__}")

    def outer() -> None:
        try:
            inner()
        except ValueError as err:
            raise EngineLoadError("outer") from err

    try:
        outer()
    except EngineLoadError as err:
        kept = err
    assert died == []
    drop_locals(kept)
    assert died == ["held"]
