"""Sources and places that a bundle cannot be built from or into: one line each, and nothing is left."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.build import BundleOptions, build_bundle
from export.engine.options import BuildOptions
from export.onnx_files import save_model
from runtime.errors import CheckpointError, DgsNetError, SpecError, UsageError
from tests.export.editing import put_values, set_weight

ROOT = Path(__file__).parent.parent.parent


def message_of(kind: type[DgsNetError], source: Path) -> str:
    """Builds from a source that must be refused; returns why, and sees that nothing was left."""
    target = source.parent / "out"
    target.mkdir()
    with pytest.raises(kind) as caught:
        build_bundle(source, target / "bundle", BundleOptions())
    assert list(target.iterdir()) == []
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def _dim(value: Any, axis: int, size: int | str) -> None:
    dim = value.type.tensor_type.shape.dim[axis]
    dim.Clear()
    setattr(dim, "dim_value" if isinstance(size, int) else "dim_param", size)


def _rename_input(model: Any) -> None:
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"


def _float_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _input_without_batch(model: Any) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[0]


def _planar_input(model: Any) -> None:
    _dim(model.graph.input[0], 1, 3)
    _dim(model.graph.input[0], 3, 224)


def _second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch"]))


def _extra_output(model: Any) -> None:
    model.graph.output.append(helper.make_tensor_value_info("pool:0", TensorProto.FLOAT, ["batch", 64]))


def _no_embedding(model: Any) -> None:
    del model.graph.output[1]


def _double_logit(model: Any) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _column_logit(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1


def _opset(version: int) -> Callable[[Any], None]:
    return lambda model: setattr(model.opset_import[0], "version", version)


def _no_standard_opset(model: Any) -> None:
    model.opset_import[0].domain = "com.example"


def _vendor_operator(model: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _function(model: Any) -> None:
    inner = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(
        helper.make_function("local", "f", ["a"], ["b"], [inner], [helper.make_opsetid("", 18)])
    )


def _branch(model: Any) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["pool:0"], ["c"])], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], name="choice", then_branch=branch))


def _halves_inside(model: Any) -> None:
    set_weight(model, "head.weight", lambda w: w, np.float16)


def _doubles_inside(model: Any) -> None:
    set_weight(model, "head.weight", lambda w: w, np.float64)


def _quantised(model: Any) -> None:
    model.graph.node.append(helper.make_node("QuantizeLinear", ["pool:0", "full"], ["q"], name="pool/q"))


def _nan(model: Any) -> None:
    put_values(model, "block_1/up.weight", (3, 5), np.nan)


def _infinite(model: Any) -> None:
    put_values(model, "block_0/q.bias", ..., -np.inf)


def _frozen_at_two(model: Any) -> None:
    put_values(model, "flat", ..., [2, 64, 49])


def _pairs_of_pictures(model: Any) -> None:
    """Shape inference cannot tell that only even batches run."""
    put_values(model, "block_1.split", ..., [-1, 98, 2, 32])


def _wrong_order(model: Any) -> None:
    model.graph.node.insert(0, model.graph.node[-1])
    del model.graph.node[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_input, "graph inputs: found ['pixels'], expected ['images']"),
        (_second_input, "graph inputs: found ['images', 'mask'], expected ['images']"),
        (_float_input, "images: found float ['batch', 224, 224, 3], expected uint8 ['batch', 224, 224, 3]"),
        (_input_without_batch, "images: found uint8 [224, 224, 3], expected uint8 ['batch', 224, 224, 3]"),
        (_planar_input, "images: found uint8 ['batch', 3, 224, 224], expected uint8 ['batch', 224, 224, 3]"),
        (lambda m: _dim(m.graph.input[0], 0, 1), "images: found uint8 [1, 224, 224, 3]"),
        (_extra_output, "found ['logit', 'embedding', 'pool:0'], expected ['logit', 'embedding']"),
        (_no_embedding, "graph outputs: found ['logit'], expected ['logit', 'embedding']"),
        (_column_logit, "logit: found float ['batch', 1], expected float ['batch']"),
        (_double_logit, "logit: found double ['batch'], expected float ['batch']"),
        (lambda m: _dim(m.graph.output[1], 0, 1), "embedding: found float [1, 32], expected float ['batch'"),
        (lambda m: _dim(m.graph.output[1], 1, "D"), "embedding: found float ['batch', 'D']"),
        (_opset(16), "found opset 16, expected 17 to 23"),
        (_opset(24), "found opset 24, expected 17 to 23"),
        (_no_standard_opset, "found no version of the standard operators"),
        (_vendor_operator, "found operator com.microsoft.Softmax, expected standard"),
        (_function, "found functions, expected no control flow and no functions"),
        (_branch, "found node choice (If), expected no control flow"),
        (_halves_inside, "found FP16 inside (head.weight), expected an FP32 graph"),
        (_doubles_inside, "found FP64 inside (head.weight), expected an FP32 graph"),
        (_quantised, "found QuantizeLinear (pool/q), expected an FP32 graph"),
        (_nan, "weight block_1/up.weight holds NaN or Inf"),
        (_infinite, "weight block_0/q.bias holds NaN or Inf"),
        (_frozen_at_two, "found 2 rows in logit whatever the input has, expected one a picture (see Reshape"),
        (_pairs_of_pictures, "found no result at batch 1, expected one at every batch"),
        (_wrong_order, "not a valid ONNX graph"),
    ],
)  # fmt: skip
def test_build_bundle__refuses_an_onnx_that_breaks_the_contract(
    change: Callable[[Any], None], message: str, vit: Callable[..., Any], tmp_path: Path
) -> None:
    model = vit()
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    assert message in message_of(SpecError, tmp_path / "model.onnx")


def test_build_bundle__takes_the_graph_that_these_were_made_from(
    vit: Callable[..., Any], tmp_path: Path
) -> None:
    """A source that is refused whatever it holds would pass every test above."""
    onnx.save(vit(), tmp_path / "model.onnx")
    report = build_bundle(tmp_path / "model.onnx", tmp_path / "bundle", BundleOptions())
    assert report.passed
    assert [phase.is_numeric for phase in report.phases].count(True) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found no graph inside"),
        (os.urandom(4096), "model.onnx: "),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "model.onnx: "),
    ],
    ids=["empty", "random", "png"],
)
def test_build_bundle__refuses_a_file_that_is_no_onnx(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert message in message_of(SpecError, tmp_path / "model.onnx")


def test_build_bundle__refuses_a_truncated_onnx(vit: Callable[..., Any], tmp_path: Path) -> None:
    onnx.save(vit(), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    assert "cannot be read as ONNX" in message_of(SpecError, tmp_path / "model.onnx")


def _without_data(path: Path) -> None:
    path.with_name("model.onnx.data").unlink()


def _short_data(path: Path) -> None:
    data = path.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:-100])


def _linked_data(path: Path) -> None:
    data = path.with_name("model.onnx.data")
    data.rename(path.with_name("elsewhere"))
    data.symlink_to(path.with_name("elsewhere"))


def _data_outside(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_data, "its weights model.onnx.data are missing"),
        (_short_data, "expected at least"),
        (_linked_data, "its weights model.onnx.data are missing"),
        (_data_outside, "lies at '../model.onnx.data', expected a file beside the graph"),
    ],
)
def test_build_bundle__refuses_weights_that_are_not_beside(
    change: Callable[[Path], None], message: str, vit: Callable[..., Any], tmp_path: Path
) -> None:
    save_model(vit(), tmp_path / "model.onnx", external_threshold=1000)
    change(tmp_path / "model.onnx")
    assert message in message_of(SpecError, tmp_path / "model.onnx")


def test_build_bundle__says_which_opsets_a_jetson_reads(
    vit: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = vit()
    model.opset_import[0].version = 21
    onnx.save(model, tmp_path / "model.onnx")
    build_bundle(tmp_path / "model.onnx", tmp_path / "bundle", BundleOptions())
    assert "opset 21 is not read by TensorRT 10.3" in caplog.text


def changed_run(run: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Copies a run and makes its record agree with the change, as a faulty writer would."""
    import hashlib

    from safetensors.numpy import load_file, save_file

    from train.checkpoint import read_record, write_record

    target.mkdir()
    state, record = load_file(run / "checkpoint.safetensors"), read_record(run)
    change(state, record)
    save_file(state, target / "checkpoint.safetensors")
    content = (target / "checkpoint.safetensors").read_bytes()
    write_record(target, record | {"weights_sha256": hashlib.sha256(content).hexdigest()})
    return target


def _nan_in(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(state: dict[str, Any], _record: dict[str, Any]) -> None:
        state[name] = state[name].copy()
        state[name].flat[1] = np.nan

    return change


def _wider(state: dict[str, Any], _record: dict[str, Any]) -> None:
    name = "base.transformer.resblocks.1.mlp.c_fc.weight"
    state[name] = np.zeros((state[name].shape[0], 2 * state[name].shape[1]), np.float32)


def _wider_adapter(state: dict[str, Any], _record: dict[str, Any]) -> None:
    state["lora.1.q.a"] = np.zeros((6, 768), np.float32)


def _other_backbone(_state: dict[str, Any], record: dict[str, Any]) -> None:
    record["config"]["backbone"] = record["backbone"]["name"] = "ViT-B-32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan_in("head_image.weight"), "tensor head_image.weight holds NaN or Inf"),
        (_nan_in("lora.2.v.b"), "tensor lora.2.v.b holds NaN or Inf"),
        (_nan_in("base.conv1.weight"), "tensor base.conv1.weight holds NaN or Inf"),
        (_wider, "resblocks.1.mlp.c_fc.weight: found shape (1024, 512), expected (1024, 256)"),
        (_wider_adapter, "lora.1.q.a: found shape (6, 768), expected (6, 256)"),
        pytest.param(_other_backbone, "ViT-B-32", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_build_bundle__names_what_is_wrong_in_a_checkpoint(
    change: Callable[[dict[str, Any], dict[str, Any]], None], message: str, run_folder: Path, tmp_path: Path
) -> None:
    run = changed_run(run_folder, tmp_path / "run", change)
    assert message in message_of(CheckpointError, run)


@pytest.mark.parametrize("sizes", [(4, 2, 8), (1, 9, 8), (8, 4, 2), (0, 1, 2), (-1, 8, 32)])
def test_build_options__refuses_batch_sizes_out_of_order(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=r"found min -?\d+, opt \d+, max \d+, expected 1 <= min <= opt"):
        BuildOptions(profiles=(sizes,))


def command(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        capture_output=True, text=True, cwd=ROOT, check=False, **options,
    )  # fmt: skip


def _half_a_megabyte() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


@pytest.mark.parametrize("words", [("build-engine",), ("onnx",)], ids=lambda w: w[0])
def test_export__a_full_disk_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], run_folder: Path, tmp_path: Path
) -> None:
    """A limit on file sizes stands in for the disk: the same call fails in the same place."""
    (tmp_path / "model.onnx").write_bytes(b"what was there before")
    done = command(
        "export", *words, run_folder, "-o", tmp_path / ("model.onnx" if words == ("onnx",) else "b"), "-q",
        preexec_fn=_half_a_megabyte,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large); free space or name another folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"what was there before"


def test_export__a_folder_that_cannot_be_written_is_one_line(
    run_folder: Path, vit: Callable[..., Any], tmp_path: Path
) -> None:
    # A file system that takes no files from anybody, as permissions do not stop root.
    done = command("export", "onnx", run_folder, "-o", "/proc/self/model.onnx", "-q")
    assert done.returncode == 2
    assert "/proc/self: cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    onnx.save(vit(), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"^/proc/self.*cannot be (written|locked)"):
        build_bundle(tmp_path / "model.onnx", Path("/proc/self/bundle"), BundleOptions())


def test_build_engine__takes_an_onnx_without_torch(
    vit: Callable[..., Any], run_folder: Path, tmp_path: Path
) -> None:
    """The engine's own process is without torch too: both read the same path."""
    pytest.importorskip("tensorrt_rtx_bindings")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "open_clip", "safetensors"):
        (blocked / f"{name}.py").write_text("raise ImportError('blocked by the test')\n")
    environment = {**os.environ, "PYTHONPATH": str(blocked)}
    onnx.save(vit(), tmp_path / "model.onnx")
    words = (
        "-o",
        tmp_path / "b",
        "--backend",
        "onnxruntime,tensorrt-rtx",
        "--max-batch",
        4,
        "--opt-batch",
        2,
    )
    done = command("export", "build-engine", tmp_path / "model.onnx", *words, env=environment)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert "tensorrt-rtx" in {entry["backend"] for entry in manifest["engines"]}
    # The block is real: a checkpoint needs what it took away.
    done = command("export", "build-engine", run_folder, "-o", tmp_path / "c", env=environment)
    assert done.returncode == 3
    assert "blocked by the test" in done.stderr
