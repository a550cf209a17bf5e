"""Real TensorRT-RTX engines, built without a GPU, and what refuses to be one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.engine import builder as builder_module
from export.engine import serialized
from export.engine.builder import build_engine
from export.engine.compatibility import check_engine
from export.engine.naming import engine_file_name, slug_from_text, target_from_text
from export.engine.options import BuildOptions, BuiltEngine
from export.engine.trt_module import load_trt
from export.engine.watch import PhaseTree
from export.onnx_files import save_model
from export.precision.conversion import fp16_from_fp32
from export.precision.policy import PrecisionPolicy
from runtime.errors import (
    EngineBuildError,
    GateFailedError,
    MissingDependencyError,
    SpecError,
    UsageError,
)
from runtime.machine import CudaDevice

needs_rtx = pytest.mark.skipif(
    not any(Path(folder, "tensorrt_rtx_bindings").is_dir() for folder in sys.path),
    reason='tensorrt-rtx is not installed: pip install "dgsnet[tensorrt-rtx]"',
)


@pytest.fixture
def fp16_onnx(fp32_onnx: Path) -> Path:
    target = fp32_onnx.with_name("model_fp16.onnx")
    fp16_from_fp32(fp32_onnx, target, PrecisionPolicy())
    return target


def build(source: Path, **options: Any) -> BuiltEngine:
    return build_engine(
        source, source.with_suffix(".engine"), BuildOptions(**options), backend="tensorrt-rtx"
    )


@needs_rtx
def test_build_engine__fp16_and_fp32_are_real_and_differ(fp32_onnx: Path, fp16_onnx: Path) -> None:
    half = build(fp16_onnx, targets=("8.9", "sm86"), profiles=((1, 2, 4),))
    full = build(fp32_onnx, precision="fp32", targets=("sm_86",), profiles=((1, 1, 1), (1, 2, 4)))
    weights = fp32_onnx.stat().st_size
    for engine in (half, full):
        assert engine.path.stat().st_size == engine.size
        assert engine.gpu is None or engine.gpu
    assert half.size > weights // 2
    assert full.size > weights
    assert full.size - half.size > weights // 3
    assert (half.fp16_share, full.fp16_share) == (1.0, 0.0)
    assert half.weighted_layers == full.weighted_layers == 19
    assert half.targets == ("sm_86", "sm_89")
    entry = full.entry("engines/a.engine")
    assert entry.profiles == ((1, 1, 1), (1, 2, 4))
    assert half.entry("engines/b.engine").profiles == ((1, 2, 4), (1, 1, 1))
    assert entry.version.count(".") == 3
    assert entry.verified == "not-run"
    assert [p.name for p in fp32_onnx.parent.iterdir() if "tmp" in p.name] == []


@needs_rtx
def test_build_engine__says_whether_it_runs_here(fp16_onnx: Path) -> None:
    from runtime.machine import cuda_device

    engine = build(fp16_onnx, targets=("sm_86",))
    if cuda_device() is None:
        assert (engine.runs_here, engine.reason) == (False, "no GPU on this machine: built, not run")
    else:
        assert engine.runs_here == (engine.reason == "")


@needs_rtx
def test_build_engine__holds_no_path_of_this_machine(fp16_onnx: Path) -> None:
    content = build(fp16_onnx, targets=("sm_86",)).path.read_bytes()
    for folder in (fp16_onnx.parent, Path(__file__).parents[2], Path(sys.prefix)):
        assert str(folder).encode() not in content


@needs_rtx
def test_build_engine__finds_weights_beside_the_graph(vit: Callable[..., Any], tmp_path: Path) -> None:
    save_model(vit(), tmp_path / "model.onnx", external_threshold=1000)
    assert build(tmp_path / "model.onnx", precision="fp32", targets=("sm_86",)).size > 1_000_000


@needs_rtx
def test_build_engine__default_targets_are_what_the_graph_can_run_on(fp16_onnx: Path) -> None:
    known = load_trt("tensorrt-rtx").architectures
    built = build(fp16_onnx)
    assert set(built.targets) == set(known) - {"sm_75"}
    with pytest.raises(EngineBuildError, match=r"built nothing: .*SM75.*FP32 GEMM is not supported"):
        build(fp16_onnx, targets=("sm_75",))


@needs_rtx
def test_build_engine__an_fp32_graph_is_no_fp16_engine(fp32_onnx: Path, fp16_onnx: Path) -> None:
    with pytest.raises(GateFailedError, match=r"found 0\.0% of MatMul, Gemm and Conv outputs in FP16"):
        build(fp32_onnx, precision="fp16")
    with pytest.raises(GateFailedError, match=r"found 17 of 19 .* expected none in an fp32 engine"):
        build(fp16_onnx, precision="fp32")
    assert not list(fp32_onnx.parent.glob("*.engine"))


@needs_rtx
def test_build_engine__a_half_converted_graph_is_refused(fp32_onnx: Path) -> None:
    half_done = fp32_onnx.with_name("half_done.onnx")
    policy = PrecisionPolicy(fp32_nodes=(*PrecisionPolicy().fp32_nodes, "block_1/*"))
    fp16_from_fp32(fp32_onnx, half_done, policy)
    with pytest.raises(GateFailedError, match=r"found 52\.9%"):
        build(half_done)
    assert build(half_done, policy=policy, targets=("sm_86",)).fp16_share == 1.0


@needs_rtx
@pytest.mark.parametrize("target", ["sm_87", "9.0", "sm110"])
def test_build_engine__an_unknown_target_lists_the_known(target: str, fp16_onnx: Path) -> None:
    with pytest.raises(UsageError, match=r"does not have it, it has sm_75, sm_80, sm_86, sm_89, sm_120"):
        build(fp16_onnx, targets=(target,))


@needs_rtx
def test_build_engine__bad_onnx_is_one_line(fp16_onnx: Path) -> None:
    fp16_onnx.write_bytes(fp16_onnx.read_bytes()[:5000])
    with pytest.raises(EngineBuildError, match=r"^model_fp16\.onnx: tensorrt-rtx cannot read it: [^\n]+$"):
        build(fp16_onnx)
    fp16_onnx.unlink()
    with pytest.raises(EngineBuildError, match=r"^model_fp16\.onnx: no such ONNX file"):
        build(fp16_onnx)


@needs_rtx
def test_build_engine__names_the_node_that_the_parser_refuses(
    vit: Callable[..., Any], tmp_path: Path
) -> None:
    model = vit()
    for node in model.graph.node:
        if node.name == "block_1/softmax":
            node.op_type, node.domain = "Sofftmax", "nowhere"
            del node.attribute[:]
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineBuildError, match=r"node block_1/softmax \(Sofftmax\)"):
        build(tmp_path / "model.onnx", precision="fp32")


@needs_rtx
def test_build_engine__another_contract_is_refused(vit: Callable[..., Any], tmp_path: Path) -> None:
    model = vit()
    del model.graph.output[1]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(SpecError, match=r"found images UINT8 .* expected .* embedding FLOAT"):
        build(tmp_path / "model.onnx", precision="fp32")


@needs_rtx
def test_build_engine__attention_without_a_fused_kernel_still_builds(tmp_path: Path) -> None:
    weights = [np.full((96, 64), 0.01 * (k + 1), np.float32) for k in range(3)]
    constants = {"shape": [0, 7, 224, 96], "axes": [1, 2, 3], "last": [1, 2]}
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["heads"]),
        # Three tensors of their own: given one tensor as q, k and v, TensorRT-RTX 1.7.1 crashes.
        *(helper.make_node("MatMul", ["heads", f"w{k}"], [f"part{k}"], name=f"part{k}") for k in range(3)),
        helper.make_node("Attention", ["part0", "part1", "part2"], ["mixed"], name="attention"),
        helper.make_node("ReduceMean", ["mixed", "axes"], ["logit"], keepdims=0),
        helper.make_node("ReduceMean", ["mixed", "last"], ["embedding"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 224, 224, 3])],
        [
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 64]),
        ],
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]
        + [numpy_helper.from_array(weight, f"w{k}") for k, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    assert build(tmp_path / "model.onnx", precision="fp32", targets=("sm_86",)).size > 10_000


@needs_rtx
def test_build_engine__ctrl_c_stops_tensorrt_and_leaves_nothing(
    fp16_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    told: list[PhaseTree] = []
    cancel = PhaseTree.cancel
    monkeypatch.setattr(PhaseTree, "cancel", lambda tree: (told.append(tree), cancel(tree)))
    monkeypatch.setattr(serialized.Progress, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(fp16_onnx)
    assert not [t for t in threading.enumerate() if t.name == "engine-build"]
    assert len(told) == 1
    assert not list(fp16_onnx.parent.glob("*.engine"))


@needs_rtx
def test_build_engine__configures_what_was_asked(fp16_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    configs: list[Any] = []

    def capture(_trt: Any, _builder: Any, _network: Any, config: Any, *_rest: Any) -> Any:
        configs.append(config)
        raise Stop

    monkeypatch.setattr(builder_module, "build_serialized", capture)
    with pytest.raises(Stop):
        build(
            fp16_onnx,
            workspace_bytes=3 << 28,
            targets=("sm_89", "sm_86"),
            profiles=((1, 8, 32),),
            optimization_level=5,
        )
    api = load_trt("tensorrt-rtx").api
    assert configs[0].num_optimization_profiles == 2
    assert configs[0].profiling_verbosity == api.ProfilingVerbosity.DETAILED
    assert configs[0].builder_optimization_level == 5
    assert configs[0].get_memory_pool_limit(api.MemoryPoolType.WORKSPACE) == 3 << 28
    chosen = [configs[0].get_compute_capability(k) for k in range(configs[0].num_compute_capabilities)]
    assert chosen == [api.ComputeCapability.SM86, api.ComputeCapability.SM89]
    assert not configs[0].get_flag(api.BuilderFlag.TF32)


@needs_rtx
def test_build_engine__cancelling_ends_the_build(fp16_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PhaseTree, "step", lambda self, name: False)
    with pytest.raises(EngineBuildError, match=r"built nothing: .*[Cc]ancel"):
        build(fp16_onnx)


@needs_rtx
def test_build_engine__refuses_options_that_do_not_fit(fp16_onnx: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt-rtx keeps no timings"):
        build(fp16_onnx, timing_cache=fp16_onnx.with_name("timings"))
    with pytest.raises(UsageError, match="no such folder"):
        build_engine(
            fp16_onnx, fp16_onnx.parent / "absent" / "a.engine", BuildOptions(), backend="tensorrt-rtx"
        )
    with pytest.raises(UsageError, match=r"onnxruntime.* builds no engines"):
        build_engine(fp16_onnx, fp16_onnx.with_suffix(".engine"), BuildOptions(), backend="onnxruntime")


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "int8"},
        {"profiles": ()},
        {"profiles": ((1, 9, 8),)},
        {"profiles": ((0, 1, 1),)},
        {"workspace_bytes": 7},
        {"hardware_compatible": "all"},
        {"optimization_level": 6},
    ],
)
def test_build_options__refuses_nonsense(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        replace(BuildOptions(), **change)


def test_build_options__a_range_from_1_gets_a_profile_for_single_images() -> None:
    def profiles(*sizes: tuple[int, int, int], **options: Any) -> tuple[tuple[int, int, int], ...]:
        return BuildOptions(profiles=sizes, **options).engine_profiles

    assert profiles((1, 8, 32)) == ((1, 8, 32), (1, 1, 1))
    assert profiles((1, 8, 32), batch_1_profile=False) == ((1, 8, 32),)
    assert profiles((1, 1, 1)) == ((1, 1, 1),)
    assert profiles((4, 8, 32)) == ((4, 8, 32),)
    assert profiles((1, 1, 1), (1, 2, 4)) == ((1, 1, 1), (1, 2, 4))


@needs_rtx
def test_build_engine__records_time_and_memory(fp16_onnx: Path) -> None:
    built = build(fp16_onnx, targets=("sm_86",))
    # Python and the library alone hold 200 MB.
    assert built.peak_bytes is not None
    assert 2e8 < built.peak_bytes < 1e11
    assert built.seconds > 0
    # Another build takes another time: a manifest that stated it would never come out the same.
    stated = built.entry("engines/a.engine").to_json()
    assert not {"build_seconds", "build_peak_bytes", "version_compatible"} & set(stated)


@needs_rtx
def test_build_engine__a_level_that_the_library_ignores_is_an_error(fp16_onnx: Path) -> None:
    for level in ("ampere-plus", "same-compute-capability"):
        with pytest.raises(EngineBuildError, match=rf"{level}: tensorrt-rtx .* ignores it \(read back: none"):
            build(fp16_onnx, hardware_compatible=level)
    with pytest.raises(UsageError, match=r"--version-compatible: tensorrt-rtx has no lean runtime"):
        build(fp16_onnx, version_compatible=True)
    assert not list(fp16_onnx.parent.glob("*.engine"))


def test_check_engine__compares_the_level_that_an_engine_states() -> None:
    levels = SimpleNamespace(
        NONE=SimpleNamespace(name="NONE"), AMPERE_PLUS=SimpleNamespace(name="AMPERE_PLUS")
    )
    api: Any = SimpleNamespace(HardwareCompatibilityLevel=levels)
    trt: Any = SimpleNamespace(api=api, backend="tensorrt", version="10.3.0.26")
    asked = BuildOptions(hardware_compatible="ampere-plus")
    as_asked: Any = SimpleNamespace(hardware_compatibility_level=levels.AMPERE_PLUS)
    ignored: Any = SimpleNamespace(hardware_compatibility_level=levels.NONE)
    check_engine(trt, as_asked, asked)
    check_engine(trt, ignored, BuildOptions())
    with pytest.raises(EngineBuildError, match=r"ignores it \(read back: none in the engine\)"):
        check_engine(trt, ignored, asked)
    with pytest.raises(UsageError, match="has no such level, expected ampere-plus"):
        check_engine(trt, ignored, replace(asked, hardware_compatible="same-compute-capability"))


def test_engine_file_name__holds_all_that_decides_where_it_runs() -> None:
    name = engine_file_name("ViT-L/14", "fp16", (1, 8, 32), ("sm_120", "sm_86"), "tensorrt-rtx", "1.7.1.116")
    assert name == "vit-l-14_fp16_b1-8-32_sm86+sm120_rtx1.7.1.116.engine"
    name = engine_file_name("clip", "fp32", (1, 1, 1), ("sm_87",), "tensorrt", "10.3.0.26")
    assert name == "clip_fp32_b1-1-1_sm87_trt10.3.0.26.engine"
    with pytest.raises(UsageError, match=r"expected a\.b\.c\.d"):
        engine_file_name("clip", "fp32", (1, 1, 1), ("sm_87",), "tensorrt", "10.3.0")
    with pytest.raises(UsageError, match="at least one letter"):
        slug_from_text("../..")


def test_target_from_text__reads_each_spelling() -> None:
    assert [target_from_text(t) for t in ("sm_86", "SM86", "86", "8.6", " sm8.6 ")] == ["sm_86"] * 5
    assert [target_from_text(t) for t in ("sm_120", "12.0", "120")] == ["sm_120"] * 3
    for text in ("", "sm", "ampere", "8", "8.6.1", "sm_86a"):
        with pytest.raises(UsageError, match="expected a GPU architecture"):
            target_from_text(text)


def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, version: str, flags: str, builder_flags: str) -> None:
    """Puts a module in tensorrt's place that has a version and two enums and nothing else."""
    module = ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    for name, members in (("NetworkDefinitionCreationFlag", flags), ("BuilderFlag", builder_flags)):
        numbered = {member: number for number, member in enumerate(members.split())}
        setattr(module, name, SimpleNamespace(**numbered))
    monkeypatch.setitem(sys.modules, "tensorrt", module)


def test_load_trt__network_flags_follow_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, "10.3.0.26", "EXPLICIT_BATCH STRONGLY_TYPED", "FP16 TF32")
    assert load_trt("tensorrt").network_flags == 0b11
    fake_tensorrt(monkeypatch, "11.4.0.106", "STRONGLY_TYPED", "TF32")
    assert load_trt("tensorrt").network_flags == 0b1
    fake_tensorrt(monkeypatch, "12.0.0.1", "", "TF32")
    assert load_trt("tensorrt").network_flags == 0
    fake_tensorrt(monkeypatch, "8.6.2.3", "EXPLICIT_BATCH", "FP16 TF32")
    with pytest.raises(MissingDependencyError, match="no strongly typed networks"):
        load_trt("tensorrt")


def test_load_trt__a_three_part_version_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, "10.3.0", "STRONGLY_TYPED", "FP16")
    with pytest.raises(MissingDependencyError, match=r"found version '10\.3\.0', expected four parts"):
        load_trt("tensorrt")


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("libnvdla_compiler.so: cannot open")])
@pytest.mark.parametrize(
    ("backend", "cure"), [("tensorrt", "JetPack"), ("tensorrt-rtx", r"dgsnet\[tensorrt-rtx\]")]
)
def test_load_trt__absent_names_the_cure(
    error: Exception, backend: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_name: str) -> ModuleType:
        raise error

    monkeypatch.setattr("runtime.backends.tensorrt.module.import_module", fail)
    with pytest.raises(MissingDependencyError, match=f"{error}.*{cure}"):
        load_trt(backend)


def test_phase_tree__share_grows_and_never_falls() -> None:
    tree = PhaseTree()
    assert tree.share() == 0
    tree.start("root", None, 2)
    tree.start("inner", "root", 4)
    tree.step("inner")
    assert tree.share() == pytest.approx(1 / 8)
    tree.finish("inner")
    assert tree.share() == pytest.approx(1 / 8)
    assert tree.step("root")
    assert tree.share() == pytest.approx(1 / 2)
    tree.cancel()
    assert not tree.step("root")
    tree.step("unknown")
    assert tree.share() == 1


def test_require_buildable__tensorrt_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, "10.3.0.26", "STRONGLY_TYPED", "FP16 TF32")
    monkeypatch.setattr(builder_module, "cuda_device", lambda: None)
    with pytest.raises(MissingDependencyError, match=r"tensorrt 10\.3\.0\.26 is installed, .*no CUDA device"):
        builder_module.require_buildable(BuildOptions(), backend="tensorrt")


def test_require_buildable__tensorrt_builds_for_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, "10.3.0.26", "STRONGLY_TYPED", "FP16 TF32")
    monkeypatch.setattr(builder_module, "cuda_device", lambda: CudaDevice("Orin", "sm_87"))
    assert builder_module.require_buildable(BuildOptions(), backend="tensorrt")[2] == ("sm_87",)
    with pytest.raises(UsageError, match=r"target sm_86: .* this machine's GPU only, sm_87"):
        builder_module.require_buildable(BuildOptions(targets=("8.6",)), backend="tensorrt")
