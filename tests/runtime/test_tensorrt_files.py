"""Engine files: their header, the real TensorRT-RTX without a GPU, and the fake against real bindings."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from runtime.backends.tensorrt.engine_host import EngineFile
from runtime.backends.tensorrt.module import four_part_version, import_tensorrt
from runtime.backends.tensorrt.plan import check_header
from runtime.backends.tensorrt.session import TensorRtSession
from runtime.bundle.engine_entry import EngineEntry
from runtime.cuda.cuda_python import CudaPython
from runtime.errors import EngineLoadError
from runtime.machine import cuda_device
from tests.runtime.fakes.cuda_driver import fake_driver
from tests.runtime.fakes.device import FakeDevice
from tests.runtime.fakes.plans import fake_plan
from tests.runtime.fakes.tensorrt_module import fake_tensorrt
from tools.tensorrt_api.check import default_files

ROOT = Path(__file__).parents[2]
SURFACES = ROOT / "tools" / "tensorrt_api" / "surfaces"
VERSIONS = {"tensorrt": "10.3.0.26", "tensorrt-rtx": "1.7.1.116"}


def entry(**changes: Any) -> EngineEntry:
    facts = {
        "file": "engines/e.engine",
        "backend": "tensorrt-rtx",
        "precision": "fp32",
        "profiles": ((1, 4, 8),),
        "targets": ("sm_89",),
        "version": VERSIONS["tensorrt-rtx"],
        "gpu": None,
        "driver": None,
        "verified": "not-run",
    }
    return EngineEntry(**(facts | changes))


# The header of an engine


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"vtrt", {}, "found 4 bytes, expected an engine of tensorrt-rtx"),
        (fake_plan("tensorrt"), {}, "found an engine of tensorrt, the manifest says tensorrt-rtx"),
        (
            fake_plan("tensorrt-rtx", "1.6.0.4"),
            {},
            r"its header says version 1\.6\.0\.4, the manifest says 1\.7\.1\.116",
        ),
    ],
)
def test_check_header__refuses_what_the_manifest_does_not_say(
    tmp_path: Path, content: bytes, changes: Any, message: str
) -> None:
    (tmp_path / "e").write_bytes(content)
    with pytest.raises(EngineLoadError, match=message):
        check_header(tmp_path / "e", entry(**changes))
    with pytest.raises(EngineLoadError, match="cannot be read"):
        check_header(tmp_path / "missing", entry())


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (fake_plan("tensorrt-rtx", "1.7.1.116"), {}),
        (fake_plan("tensorrt", "10.16.0.372"), {"backend": "tensorrt", "version": "10.16.0.372"}),
        (b"a beginning that nobody knows".ljust(100), {}),
        (b"vtrt\1\0\0\0".ljust(100), {}),
    ],
    ids=["rtx", "build number above a byte", "unknown", "another layout"],
)
def test_check_header__leaves_the_rest_to_the_library(tmp_path: Path, content: bytes, changes: Any) -> None:
    (tmp_path / "e").write_bytes(content)
    check_header(tmp_path / "e", entry(**changes))


# The real TensorRT-RTX


@pytest.fixture(scope="module")
def rtx_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real engine for sm_89 of a graph with the contract's tensors, built without a GPU."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed here")
    from export.engine.builder import build_engine
    from export.engine.options import BuildOptions

    folder = tmp_path_factory.mktemp("rtx")
    _write_graph(folder / "model.onnx")
    options = BuildOptions(precision="fp32", profiles=((1, 4, 8), (1, 1, 1)), targets=("sm_89",))
    build_engine(folder / "model.onnx", folder / "e.engine", options, backend="tensorrt-rtx")
    return folder / "e.engine"


def _write_graph(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["embedding"], keepdims=0),
        helper.make_node("ReduceMean", ["embedding", "last"], ["logit"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
    ]
    tensors = {
        "images": (TensorProto.UINT8, ["batch", 224, 224, 3]),
        "logit": (TensorProto.FLOAT, ["batch"]),
        "embedding": (TensorProto.FLOAT, ["batch", 3]),
    }
    infos = {name: helper.make_tensor_value_info(name, *facts) for name, facts in tensors.items()}
    graph = helper.make_graph(
        nodes, "mean", [infos["images"]], [infos["logit"], infos["embedding"]], constants
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def engine_file(path: Path, **changes: Any) -> EngineFile:
    return EngineFile(path, entry(**changes), 3, "0" * 64, path.parent, False, "eager")


def test_real_rtx__header_says_what_its_module_says(rtx_engine: Path) -> None:
    api = import_tensorrt("tensorrt-rtx")
    version = four_part_version(api, "tensorrt-rtx")
    check_header(rtx_engine, entry(version=version))
    newer = ".".join([*version.split(".")[:3], str((int(version.split(".")[3]) + 1) % 256)])
    with pytest.raises(EngineLoadError, match=re.escape(f"its header says version {version}")):
        check_header(rtx_engine, entry(version=newer))


def test_real_rtx__without_a_gpu_gives_one_line_and_frees_all(rtx_engine: Path) -> None:
    if cuda_device() is not None:
        pytest.skip("this machine has a CUDA device")
    version = four_part_version(import_tensorrt("tensorrt-rtx"), "tensorrt-rtx")
    device = FakeDevice("RTX 4090", (8, 9))
    with pytest.raises(EngineLoadError) as caught:
        TensorRtSession(engine_file(rtx_engine, version=version), CudaPython(fake_driver(device)))
    said = str(caught.value)
    assert re.match(r"e\.engine: .* \(tensorrt-rtx [\d.]+: .+\); build it again on this machine, or", said)
    assert "\n" not in said
    assert device.leaks() == []


def test_real_rtx__a_mismatch_is_stated_first(rtx_engine: Path) -> None:
    device = FakeDevice("RTX 5090", (12, 0))
    version = four_part_version(import_tensorrt("tensorrt-rtx"), "tensorrt-rtx")
    with pytest.raises(
        EngineLoadError, match="built for sm_89, this device is sm_120; choose another --engine"
    ):
        TensorRtSession(engine_file(rtx_engine, version=version), CudaPython(fake_driver(device)))
    with pytest.raises(EngineLoadError, match=r"built with 1\.6\.0\.1"):
        TensorRtSession(engine_file(rtx_engine, version="1.6.0.1"), CudaPython(fake_driver(device)))


def test_name_check__covers_every_file_that_works_with_tensorrt() -> None:
    checked = {path.relative_to(ROOT).as_posix() for path in default_files()}
    using = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "runtime").rglob("*.py")
        if re.search(r"tensorrt\._Module|tensorrt\.I[A-Z]", path.read_text(encoding="utf-8"))
    }
    assert "runtime/backends/tensorrt/batch_runner.py" in using
    assert using <= checked


# The fake against what the bindings of each version have


@pytest.mark.parametrize("surface", sorted(SURFACES.glob("*.json")), ids=lambda path: path.stem)
def test_fake_tensorrt__has_nothing_that_the_real_one_has_not(surface: Path) -> None:
    classes = json.loads(surface.read_text(encoding="utf-8"))["classes"]
    rtx = surface.stem.startswith("tensorrt_rtx")
    module = fake_tensorrt(FakeDevice(), rtx=rtx)
    names = ["Runtime", "ICudaEngine", "IExecutionContext"] + ["IRuntimeConfig", "IRuntimeCache"] * rtx
    compared = 0
    for name in names:
        methods = classes[name]["methods"]
        for method, function in vars(getattr(module, name)).items():
            if inspect.isfunction(function) and not method.startswith("_") and method != "check":
                given = len(inspect.signature(function).parameters)
                counts = {len(_arguments(signature)) for signature in methods[method]}
                assert given in counts, f"{name}.{method}: {given} arguments, found {counts}"
                compared += 1
    assert compared >= 13
    kinds = ("DataType", "TensorIOMode", "ExecutionContextAllocationStrategy")
    for kind in (*kinds, *(("DynamicShapesKernelSpecializationStrategy",) if rtx else ())):
        assert {member.name for member in getattr(module, kind)} <= set(classes[kind]["members"])


def _arguments(signature: str) -> list[str]:
    inside = re.sub(r"<[^>]*>|\[[^\]]*\]", "", signature.rpartition(" -> ")[0]).strip()[1:-1]
    return [part for part in inside.split(",") if part.strip()]
