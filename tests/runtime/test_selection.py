"""Which engine is taken, and the one reason why each other is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from runtime.backends import selection
from runtime.backends.selection import select_engine
from runtime.backends.tensorrt.compatibility import mismatch
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import Manifest, parse_manifest
from runtime.errors import MissingDependencyError, UsageError
from runtime.machine import CudaDevice, cuda_device

ORIN = CudaDevice("Orin", "sm_87")
L4 = CudaDevice("L4", "sm_89")
TENSORRT = {
    "backend": "tensorrt",
    "precision": "fp16",
    "targets": ["sm_87"],
    "version": "10.3.0.26",
    "gpu": "Orin",
}
RTX = {"backend": "tensorrt-rtx", "precision": "fp16", "targets": ["sm_86", "sm_89"], "version": "1.7.1.116"}


@pytest.fixture
def manifest(
    write_tiny_bundle: Callable[..., Path], engine_entry: Callable[..., dict[str, Any]], tmp_path: Path
) -> Manifest:
    engines = [
        engine_entry("model.onnx", "onnxruntime"),
        engine_entry("engines/wide.engine", **TENSORRT, profiles=[[1, 8, 32]]),
        engine_entry("engines/narrow.engine", **TENSORRT, profiles=[[1, 2, 4]]),
        engine_entry("engines/rtx.engine", **RTX),
    ]
    folder = write_tiny_bundle(tmp_path / "many", engines=engines)
    return parse_manifest((folder / "manifest.json").read_bytes())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends to another machine: its CUDA device, importable modules and installed distributions."""

    def pretend(
        device: CudaDevice | None = None,
        modules: tuple[str, ...] = (),
        versions: dict[str, str] | None = None,
        broken: str = "",
        bindings: tuple[str, ...] = ("cuda-python",),
    ) -> None:
        versions = versions or {}

        def import_tensorrt(backend: str) -> object:
            if broken:
                raise MissingDependencyError(broken)
            return object()

        monkeypatch.setattr(selection, "cuda_device", lambda: device)
        monkeypatch.setattr(selection, "import_tensorrt", import_tensorrt)
        monkeypatch.setattr(
            selection,
            "missing_binding",
            lambda name: None if name in bindings else f"{name} is not installed",
        )
        monkeypatch.setattr(
            selection.importlib.util, "find_spec", lambda name: object() if name in modules else None
        )
        monkeypatch.setattr(
            selection,
            "installed_version",
            lambda *names: next((versions[name] for name in names if name in versions), None),
        )

    return pretend


def reasons(report: selection.BackendReport) -> dict[str, str]:
    return {rejection.candidate: rejection.reason for rejection in report.rejected}


def test_select_engine__auto_ends_on_the_cpu_with_one_reason_each(manifest: Manifest, machine: Any) -> None:
    machine()
    report = select_engine(manifest)
    assert (report.name, report.device, report.engine) == ("onnxruntime:cpu", "cpu", "model")
    assert [rejection.candidate for rejection in report.rejected] == [
        "tensorrt narrow",
        "tensorrt wide",
        "tensorrt-rtx rtx",
        "onnxruntime:cuda",
    ]
    assert reasons(report) == {
        "tensorrt narrow": "tensorrt is not installed",
        "tensorrt wide": "tensorrt is not installed",
        "tensorrt-rtx rtx": "tensorrt_rtx is not installed",
        "onnxruntime:cuda": "no CUDA device",
    }
    assert len(report.lines()) == 5


def test_select_engine__orders_equals_by_the_requested_batch(manifest: Manifest, machine: Any) -> None:
    machine()
    order = [r.candidate for r in select_engine(manifest, batch=8).rejected]
    assert order[:2] == ["tensorrt wide", "tensorrt narrow"]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"device": ORIN}, "tensorrt is not installed"),
        ({"modules": ("tensorrt",)}, "no CUDA device"),
        (
            {"device": ORIN, "modules": ("tensorrt",), "versions": {"tensorrt": "10.7.0.23"}},
            "built with 10.3.0.26, 10.7.0.23 is installed",
        ),
        (
            {"device": L4, "modules": ("tensorrt",), "versions": {"tensorrt": "10.3.0"}},
            "built for sm_87, this device is sm_89",
        ),
        (
            {"device": CudaDevice("Orin NX", "sm_87"), "modules": ("tensorrt",)},
            "built on Orin, this device is Orin NX",
        ),
        ({"device": ORIN, "modules": ("tensorrt",), "bindings": ()}, "cuda-python is not installed"),
        ({"device": ORIN, "modules": ("tensorrt",), "broken": "no libnvdla_compiler.so"}, "no libnvdla"),
    ],
    ids=["module", "device", "version", "target", "gpu", "binding", "import"],
)
def test_select_engine__tensorrt_states_the_first_reason(
    manifest: Manifest, machine: Any, facts: dict[str, Any], reason: str
) -> None:
    machine(**facts)
    assert reason in reasons(select_engine(manifest))["tensorrt narrow"]


def test_select_engine__takes_tensorrt_when_everything_agrees(manifest: Manifest, machine: Any) -> None:
    machine(ORIN, ("tensorrt",), {"tensorrt": "10.3.0"})
    report = select_engine(manifest)
    assert (report.name, report.device, report.engine) == ("tensorrt:sm_87", "sm_87", "narrow")
    assert report.rejected == ()
    assert select_engine(manifest, batch=8).engine == "wide"
    assert select_engine(manifest, engine="wide").name == "tensorrt:sm_87"


def test_select_engine__takes_rtx_on_each_of_its_targets(manifest: Manifest, machine: Any) -> None:
    machine(L4, ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"), {"tensorrt-rtx-cu13-bindings": "1.7.1.116"})
    report = select_engine(manifest)
    assert (report.name, report.engine) == ("tensorrt-rtx:sm_89", "rtx")
    assert reasons(report)["tensorrt wide"] == "tensorrt is not installed"
    machine(ORIN, ("tensorrt_rtx",), {})
    assert "built for sm_86, sm_89" in reasons(select_engine(manifest))["tensorrt-rtx rtx"]
    machine(L4, ("tensorrt_rtx",), {"tensorrt-rtx": "1.8.0.1"})
    assert "1.8.0.1 is installed" in reasons(select_engine(manifest))["tensorrt-rtx rtx"]


def test_select_engine__asks_for_the_binding_that_will_be_used(manifest: Manifest, machine: Any) -> None:
    machine(ORIN, ("tensorrt",), bindings=("pycuda",))
    assert select_engine(manifest, cuda_api="pycuda").name == "tensorrt:sm_87"
    assert "cuda-python is not installed" in reasons(select_engine(manifest))["tensorrt narrow"]


def test_select_engine__code_in_a_plan_needs_permission(
    write_tiny_bundle: Callable[..., Path],
    engine_entry: Callable[..., dict[str, Any]],
    tmp_path: Path,
    machine: Any,
) -> None:
    engines = [
        engine_entry("model.onnx", "onnxruntime"),
        engine_entry("engines/vc.engine", **TENSORRT, version_compatible=True),
    ]
    folder = write_tiny_bundle(tmp_path / "vc", engines=engines)
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    machine(ORIN, ("tensorrt",), {"tensorrt": "11.4.1.2"})
    assert "--allow-engine-host-code" in reasons(select_engine(manifest))["tensorrt vc"]
    assert select_engine(manifest, allow_engine_host_code=True).engine == "vc"


def entry(**changes: Any) -> EngineEntry:
    facts = {
        "file": "e",
        "backend": "tensorrt",
        "precision": "fp16",
        "profiles": ((1, 1, 1),),
        "targets": ("sm_86",),
        "version": "10.3.0.26",
        "gpu": "A10",
        "driver": None,
        "verified": "passed",
    }
    return EngineEntry(**(facts | changes))


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "target", "fits"),
    [
        ({}, "10.3.0.26", "A10", "sm_86", True),
        ({}, "10.3.0", "A10", "sm_86", True),
        ({}, None, "A10", "sm_86", True),
        ({}, "10.3.0.27", "A10", "sm_86", False),
        ({}, "10.3.0.26", "A40", "sm_86", False),
        ({"hardware_compatible": "same-compute-capability"}, "10.3.0.26", "A40", "sm_86", True),
        ({"hardware_compatible": "same-compute-capability"}, "10.3.0.26", "L4", "sm_89", False),
        ({"hardware_compatible": "ampere-plus"}, "10.3.0.26", "L4", "sm_89", True),
        ({"hardware_compatible": "ampere-plus"}, "10.3.0.26", "B200", "sm_100", True),
        ({"hardware_compatible": "ampere-plus"}, "10.3.0.26", "T4", "sm_75", False),
        ({"hardware_compatible": "ampere-plus"}, "10.3.0.26", "Orin", "sm_87", False),
        ({"version_compatible": True}, "10.16.0.72", "A10", "sm_86", True),
        ({"version_compatible": True}, "11.4.1", "A10", "sm_86", True),
        ({"version_compatible": True}, "12.0.0.1", "A10", "sm_86", False),
        ({"version_compatible": True}, "10.2.0.1", "A10", "sm_86", False),
        ({"backend": "tensorrt-rtx", "gpu": None}, "10.3.0.26", "any", "sm_86", True),
    ],
)
def test_mismatch__compares_version_target_and_gpu(
    changes: dict[str, Any], version: str | None, gpu: str, target: str, fits: bool
) -> None:
    assert (mismatch(entry(**changes), version=version, gpu=gpu, target=target) is None) == fits


def test_select_engine__by_name_and_absent_is_a_missing_dependency(manifest: Manifest, machine: Any) -> None:
    machine()
    for backend, reason in (
        ("tensorrt", "tensorrt is not installed"),
        ("tensorrt-rtx", "tensorrt_rtx is not installed"),
        ("onnxruntime:cuda", "no CUDA device"),
    ):
        with pytest.raises(MissingDependencyError, match=reason):
            select_engine(manifest, backend)


def test_select_engine__by_stem(manifest: Manifest, machine: Any) -> None:
    machine()
    assert select_engine(manifest, engine="model").name == "onnxruntime:cpu"
    with pytest.raises(MissingDependencyError, match="tensorrt wide: tensorrt is not installed"):
        select_engine(manifest, engine="wide")
    with pytest.raises(UsageError, match="this bundle holds model, narrow, rtx, wide"):
        select_engine(manifest, engine="none")
    with pytest.raises(UsageError, match="is not one of backend"):
        select_engine(manifest, "tensorrt", engine="model")
    with pytest.raises(UsageError, match="expected one of auto"):
        select_engine(manifest, "openvino")


def test_select_engine__takes_cuda_when_everything_agrees(
    manifest: Manifest, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(ORIN)
    installed = reasons(select_engine(manifest))["onnxruntime:cuda"]
    assert installed == "the installed onnxruntime has no CUDAExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert select_engine(manifest).name == "onnxruntime:cuda"


def test_select_engine__says_what_a_bundle_does_not_hold(
    write_tiny_bundle: Callable[..., Path], engine_entry: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    half = [engine_entry("model.onnx", "onnxruntime", precision="fp16", targets=["cpu"])]
    folder = write_tiny_bundle(tmp_path / "half", engines=half)
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    with pytest.raises(MissingDependencyError) as caught:
        select_engine(manifest)
    for reason in ("holds no engine for it", "lists it for cpu only", "runs the fp32 graph only"):
        assert reason in str(caught.value)


def test_select_engine__warns_of_two_onnxruntimes(
    manifest: Manifest,
    machine: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import onnxruntime

    monkeypatch.setattr(logging.getLogger("dgsnet"), "propagate", True)
    machine()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "onnxruntime" / "__init__.py"))
    (tmp_path / "onnxruntime-1.31.1.dist-info").mkdir()
    select_engine(manifest)
    assert "overwrite each other" not in caplog.text
    (tmp_path / "onnxruntime_gpu-1.31.1.dist-info").mkdir()
    select_engine(manifest)
    assert "overwrite each other" in caplog.text


def test_cuda_device__answers_without_raising() -> None:
    device = cuda_device()
    assert device is None or device.target.startswith("sm_")


def test_select_engine__takes_none_that_failed_its_verification(
    write_tiny_bundle: Callable[..., Path],
    engine_entry: Callable[..., dict[str, Any]],
    tmp_path: Path,
    machine: Any,
) -> None:
    machine()
    entry = engine_entry("model.onnx", "onnxruntime") | {"verified": "failed"}
    folder = write_tiny_bundle(tmp_path / "failed", engines=[entry])
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    with pytest.raises(MissingDependencyError, match="failed its verification"):
        select_engine(manifest)


def test_select_engine__names_the_flag_that_was_given(manifest: Manifest, machine: Any) -> None:
    machine()
    with pytest.raises(MissingDependencyError, match=r"engine 'rtx' cannot run here: .*another --engine"):
        select_engine(manifest, engine="rtx")
