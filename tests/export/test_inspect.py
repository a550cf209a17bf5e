"""Inspect on real graphs, real TensorRT-RTX engines and a real bundle, and on files that are none of these.

What a GPU would say about an engine's layers is not run here: its summary is tested on hand-made JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from export.commands.inspect import inspect_command
from export.engine.builder import build_engine
from export.engine.naming import engine_file_name
from export.engine.options import BuildOptions
from export.graph.detector import detector_graph
from export.graph.tower import Block, Linear, Norm, Tower
from export.inspect import engine as engine_module
from export.inspect.engine_layers import layers_summary
from export.inspect.onnx_graph import onnx_facts, part_of
from export.onnx_files import save_graph
from export.precision.conversion import fp16_from_fp32
from export.precision.policy import PrecisionPolicy
from runtime.errors import DgsNetError, ManifestError, SpecError, UsageError
from runtime.machine import CudaDevice

WIDTH, EMBED, PATCH, BLOCKS = 64, 32, 32, 2


def run(path: Path, *arguments: str) -> Any:
    return CliRunner().invoke(inspect_command, [str(path), *arguments])


def facts_of(path: Path) -> dict[str, Any]:
    done = run(path, "--json")
    assert done.exception is None, done.exception
    facts: dict[str, Any] = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(name))
    return facts


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx and model_fp16.onnx, written by the exporter's own graph writer."""
    draw = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return (draw.standard_normal(shape) * 0.05).astype(np.float32)

    def norm() -> Norm:
        return Norm(np.ones(WIDTH, np.float32), array(WIDTH), 1e-5)

    def linear(rows: int, columns: int) -> Linear:
        return Linear(array(rows, columns), array(rows))

    def block() -> Block:
        projections = linear(3 * WIDTH, WIDTH), linear(WIDTH, WIDTH)
        return Block(
            norm(), *projections, None, norm(), linear(4 * WIDTH, WIDTH), linear(WIDTH, 4 * WIDTH), None
        )

    tower = Tower(
        conv=array(WIDTH, 3, PATCH, PATCH),
        tokens=array((224 // PATCH) ** 2 + 1, WIDTH),
        ln_pre=norm(),
        blocks=tuple(block() for _ in range(BLOCKS)),
        ln_post=norm(),
        projection=array(WIDTH, EMBED),
        heads=2,
        activation="QuickGELU",
    )
    folder = tmp_path_factory.mktemp("graphs")
    save_graph(detector_graph(tower, array(1, EMBED), array(1)), folder / "model.onnx")
    fp16_from_fp32(folder / "model.onnx", folder / "model_fp16.onnx", PrecisionPolicy())
    return folder


@pytest.fixture(scope="module")
def engines(graphs: Path) -> dict[str, Path]:
    """Real TensorRT-RTX engines of both precisions, named as build-engine names them."""
    pytest.importorskip("tensorrt_rtx_bindings")
    paths = {}
    for precision, name in (("fp32", "model.onnx"), ("fp16", "model_fp16.onnx")):
        staged = graphs / f"{precision}.engine"
        options = BuildOptions(precision=precision, targets=("sm_86",), profiles=((1, 2, 4),))
        built = build_engine(graphs / name, staged, options, backend="tensorrt-rtx")
        final = engine_file_name("vit", precision, (1, 2, 4), built.targets, "tensorrt-rtx", built.version)
        paths[precision] = staged.rename(graphs / final)
    return paths


@pytest.fixture(scope="module")
def made_bundle(graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as build-engine makes it of an ONNX file, with a TensorRT-RTX engine."""
    from export.build import BundleOptions, build_bundle

    pytest.importorskip("tensorrt_rtx_bindings")
    bundle = tmp_path_factory.mktemp("made") / "bundle"
    options = BundleOptions(
        backends=("onnxruntime", "tensorrt-rtx"),
        engine=BuildOptions(targets=("sm_89",), profiles=((1, 2, 4),)),
    )
    build_bundle(graphs / "model.onnx", bundle, options)
    return bundle


@pytest.fixture
def bundle(made_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made_bundle, tmp_path / "bundle"))


def test_inspect__of_a_bundle_says_what_it_holds(bundle: Path) -> None:
    facts = facts_of(bundle)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert facts["digest"] == manifest["digest"]
    assert facts["contract"] == manifest["graph"]
    assert facts["decision"]["threshold"] == manifest["decision"]["threshold"]
    assert {file["name"]: file["sha256"] for file in facts["files"]} == {
        name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    assert all(file["intact"] for file in facts["files"])
    states = {(engine["backend"], *engine["targets"]): engine["state"] for engine in facts["engines"]}
    assert states["onnxruntime", "cpu"] == "verified"
    assert states["tensorrt-rtx", "sm_89"] == "built, never run"
    text = run(bundle).stdout
    assert "24 + 25 patches of 32 px" in text
    assert "images uint8 [batch, 224, 224, 3]" in text


def test_inspect__of_a_bundle_with_a_flipped_byte_shows_which_file_differs(bundle: Path) -> None:
    path = next((bundle / "engines").iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = run(bundle)
    assert done.exit_code == 0
    assert "DIFFERS, the manifest says" in done.stdout
    assert f"warning: 1 files differ from the manifest, first: engines/{path.name}" in done.stderr
    facts = json.loads(run(bundle, "--json").stdout)
    assert [file["name"] for file in facts["files"] if not file["intact"]] == [f"engines/{path.name}"]
    assert facts["engines"][-1]["state"] == "its file differs from the manifest"
    assert "DIFFERS from the manifest" in run(path).stdout


def test_inspect__refuses_a_bundle_whose_manifest_was_changed(bundle: Path) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"real"', '"fake"'), encoding="utf-8")
    done = run(bundle)
    assert isinstance(done.exception, ManifestError)
    assert "does not match its digest" in str(done.exception)


def test_onnx_facts__of_the_fp32_graph_count_nodes_weights_and_attention(graphs: Path) -> None:
    facts = facts_of(graphs / "model.onnx")
    model = onnx.load(graphs / "model.onnx")
    assert facts["contract"] == {
        "follows": True,
        "embed_dim": EMBED,
        "reason": None,
        "metadata_differs": None,
    }
    assert facts["opsets"] == {"ai.onnx": 18}
    assert facts["nodes"] == len(model.graph.node)
    assert facts["nodes_by_op"]["Softmax"] == BLOCKS
    assert facts["layer_norms"] == 2 + 2 * BLOCKS
    assert facts["weighted"]["by_precision"] == {"fp32": 3 + 6 * BLOCKS}
    assert facts["weighted"]["fp16_share"] == 0.0
    assert facts["weighted"]["kept_fp32"] == ["projection/matmul", "head/matmul"]
    expected = sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer if t.data_type == 1)
    assert facts["weights_by_dtype"]["fp32"]["bytes"] == expected
    parts = facts["parts"]
    assert sum(part["nodes"] for part in parts.values()) == facts["nodes"]
    assert sum(part["weight_bytes"] for part in parts.values()) == sum(
        numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer
    )
    assert parts["block_0"]["weight_bytes"] == sum(
        numpy_helper.to_array(t).nbytes for t in model.graph.initializer if t.name.startswith("block_0/")
    )
    assert parts["block_0"]["nodes"] == sum(n.name.startswith("block_0/") for n in model.graph.node)
    assert [(a["part"], a["form"], a["precision"]) for a in facts["attention"]] == [
        (f"block_{k}", "MatMul-Softmax-MatMul", "fp32") for k in range(BLOCKS)
    ]


def test_onnx_facts__of_the_fp16_graph_show_what_stays_fp32(graphs: Path) -> None:
    facts = facts_of(graphs / "model_fp16.onnx")
    assert facts["weighted"]["by_precision"] == {"fp16": 1 + 6 * BLOCKS, "fp32": 2}
    assert facts["weighted"]["fp16_share"] == 1.0
    assert {a["precision"] for a in facts["attention"]} == {"fp16"}
    assert "fp16 share   100.0 %" in run(graphs / "model_fp16.onnx").stdout


def test_onnx_facts__name_the_data_file_and_its_hash(vit: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(vit(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    facts = facts_of(path)
    data = tmp_path / "model.onnx.data"
    assert facts["files"][1] == {
        "name": "model.onnx.data",
        "size": data.stat().st_size,
        "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
    }
    assert facts["weights_by_dtype"]["fp32"]["bytes"] > 10**5
    data.unlink()
    assert isinstance(run(path).exception, SpecError)


def edited(graphs: Path, path: Path, edit: Callable[[Any], None]) -> dict[str, Any]:
    model = onnx.load(graphs / "model.onnx")
    edit(model)
    path.write_bytes(model.SerializeToString())
    return onnx_facts(path)


def test_onnx_facts__see_attention_that_is_masked_scaled_later_exposed_or_gone(
    graphs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "edited.onnx"

    def mask(model: Any) -> None:
        softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
        at = list(model.graph.node).index(softmax)
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "mask"))
        model.graph.node.insert(at, helper.make_node("Add", ["mask", softmax.input[0]], ["masked"], name="m"))
        softmax.input[0] = "masked"

    assert len(edited(graphs, path, mask)["attention"]) == BLOCKS

    def expose(model: Any) -> None:
        model.graph.output.append(
            helper.make_tensor_value_info(
                "block_1/attention/softmax", TensorProto.FLOAT, ["batch", 2, 50, 50]
            )
        )

    facts = edited(graphs, path, expose)
    assert [found["exposed"] for found in facts["attention"]] == [False, True]
    assert facts["contract"]["follows"] is False
    assert "'block_1/attention/softmax'" in facts["contract"]["reason"]

    def break_it(model: Any) -> None:
        for node in model.graph.node:
            if node.op_type == "Softmax":
                node.op_type = "Relu"
                del node.attribute[:]

    assert edited(graphs, path, break_it)["attention"] == []

    def use_otherwise(model: Any) -> None:
        next(node for node in model.graph.node if node.name == "block_0/attention/mix").op_type = "Add"

    assert [found["part"] for found in edited(graphs, path, use_otherwise)["attention"]] == ["block_1"]


def test_onnx_facts__see_one_attention_node(tmp_path: Path) -> None:
    shape = ["batch", 2, 5, 8]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in "qkvy"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="layers.7/attn/Attention")
    graph = helper.make_graph([node], "g", values[:3], values[3:])
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    (found,) = onnx_facts(path)["attention"]
    assert found == {
        "part": "block_7",
        "node": "layers.7/attn/Attention",
        "form": "Attention",
        "precision": "fp16",
        "exposed": False,
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("block_11/mlp/fc/matmul", "block_11"),
        ("/visual/transformer/resblocks.3/attn/MatMul", "block_3"),
        ("/encoder/layers.0/mlp/Gelu", "block_0"),
        ("head/squeeze", "head"),
        ("MatMul_12", "MatMul_12"),
        ("", "(unnamed)"),
    ],
)
def test_part_of__reads_names_of_ours_and_of_other_exporters(name: str, part: str) -> None:
    assert part_of(name) == part


def test_inspect__of_engines_reads_name_header_and_fused_attention(engines: dict[str, Path]) -> None:
    for precision, found in (("fp32", False), ("fp16", True)):
        facts = facts_of(engines[precision])
        assert facts["sha256"] == hashlib.sha256(engines[precision].read_bytes()).hexdigest()
        assert facts["name"]["precision"] == precision
        assert facts["name"]["profile"] == [1, 2, 4]
        assert facts["name"]["targets"] == ["sm_86"]
        assert facts["header"]["version"] == facts["name"]["version"]
        assert facts["fused_attention"]["found"] is found
        assert facts["backend"] == "tensorrt-rtx"
    assert "fused kernels: found _gemm_mha_v2_0x" in run(engines["fp16"]).stdout


def test_inspect__never_opens_an_engine_without_a_device(
    engines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "cuda_device", lambda: None)
    monkeypatch.setattr(engine_module, "ask_child", lambda *_a: pytest.fail("it was opened"))
    facts = facts_of(engines["fp16"])
    assert facts["opened"]["reason"] == "no GPU here: engines open on a GPU only"
    assert facts["opened"]["layers"] is None


def test_inspect__with_a_device_shows_what_the_inspector_says(
    engines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake device and a fake child: only the way from the inspector's JSON to the report is run here."""
    tensor = {"name": "images", "mode": "input", "dtype": "uint8", "shape": [-1, 224, 224, 3]}
    asked: list[tuple[str, dict[str, str]]] = []

    def child(module: str, argument: str) -> dict[str, Any]:
        asked.append((module, json.loads(argument)))
        return {"tensors": [tensor], "information": INFORMATION}

    monkeypatch.setattr(engine_module, "cuda_device", lambda: CudaDevice("GPU", "sm_86"))
    monkeypatch.setattr(engine_module, "ask_child", child)
    text = run(engines["fp16"]).stdout
    path = str(engines["fp16"])
    assert asked == [("export.inspect.opening", {"path": path, "backend": "tensorrt-rtx"})]
    assert "input        images uint8 [-1, 224, 224, 3]" in text
    assert "4: 2 fp16, 1 fp32, 1 none" in text


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there may be a GPU that opens it")
def test_inspect__with_a_device_that_lies_reports_why_the_engine_did_not_open(
    engines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "cuda_device", lambda: CudaDevice("GPU", "sm_86"))
    done = run(engines["fp16"])
    assert done.exception is None
    assert "not opened: tensorrt-rtx does not open it (" in done.stdout


# Hand-made after the inspector's documented form; not the output of a run on a device.
INFORMATION = {
    "Layers": [
        {
            "Name": "__myl_CastDiv_myl0_0",
            "LayerType": "kgen",
            "Outputs": [{"Name": "a", "Format/Datatype": "Float"}],
        },
        {
            "Name": "_gemm_mha_v2_myl0_5",
            "LayerType": "kgen",
            "Outputs": [{"Name": "b", "Format/Datatype": "Half"}],
        },
        {
            "Name": "block_0/mlp/fc/matmul",
            "LayerType": "gemm",
            "Outputs": [{"Name": "c", "Format/Datatype": "Row major linear FP16 format"}],
            "TacticName": "sm80_xmma_gemm_f16f16",
        },
        {"Name": "wait", "LayerType": "signal", "Outputs": []},
    ],
    "Bindings": ["images", "logit", "embedding"],
}


def test_layers_summary__counts_precisions_and_finds_fused_attention() -> None:
    summary = layers_summary(INFORMATION)
    assert summary["by_precision"] == {"fp16": 2, "fp32": 1, "none": 1}
    assert summary["by_type"] == {"kgen": 2, "gemm": 1, "signal": 1}
    assert summary["fused_attention"] == {"found": True, "count": 1, "layers": ["_gemm_mha_v2_myl0_5"]}
    assert summary["tensors"] == ["images", "logit", "embedding"]
    assert summary["detailed"] is True


def test_layers_summary__takes_the_tensors_of_tensorrt_11_and_bare_names() -> None:
    bare = {"Layers": ["conv", "fmha_v2_flash_attention_fp16"], "I/O Tensors": [{"Name": "images"}]}
    summary = layers_summary(bare)
    assert summary["detailed"] is False
    assert summary["by_precision"] == {}
    assert summary["fused_attention"]["count"] == 1
    assert summary["tensors"] == ["images"]


def test_layers_summary__does_not_take_unfused_attention_for_fused() -> None:
    layers = [
        {"Name": f"block_0/attention/{part}", "LayerType": "gemm", "Metadata": "[ONNX Layer: block_0/mha]"}
        for part in ("scores", "mix")
    ]
    assert layers_summary({"Layers": layers})["fused_attention"]["found"] is False


@pytest.mark.parametrize(
    ("stated", "precision"),
    [
        ("BFloat16", "bf16"),
        ("Row major linear BF16", "bf16"),
        ("Row major Int8 format", "int8"),
        ("UInt8", "uint8"),
        ("FP8E4M3", "fp8"),
        ("N/A due to dynamic shapes", "unknown"),
    ],
)
def test_layers_summary__reads_every_spelling_of_a_type(stated: str, precision: str) -> None:
    layer = {"Name": "x", "Outputs": [{"Format/Datatype": stated}]}
    assert layers_summary({"Layers": [layer]})["by_precision"] == {precision: 1}


@pytest.mark.parametrize("information", [None, [], {}, {"Layers": 3}])
def test_layers_summary__refuses_what_is_no_inspector_json(information: object) -> None:
    with pytest.raises(SpecError, match="no list of Layers"):
        layers_summary(information)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda d: d / "absent.onnx", UsageError, "no such file or folder"),
        (lambda d: d, UsageError, "found a folder without manifest.json"),
        (lambda d: written(d / "notes.txt", b"hello"), UsageError, "found a file with '.txt'"),
        (lambda d: written(d / "empty.onnx", b""), SpecError, "found an empty file"),
        (
            lambda d: written(d / "text.onnx", b"hello, this is text\n" * 9),
            SpecError,
            "cannot be read as ONNX",
        ),
        (lambda d: sparse(d / "huge.onnx", 2**33), SpecError, "an ONNX file has less than"),
        (
            lambda d: written(d / "text.engine", b"hello, this is text\n" * 9),
            SpecError,
            "found b'hello, this ",
        ),
        (lambda d: written(d / "short.plan", b"vtrt\0"), SpecError, "expected the bytes of an engine"),
        (lambda d: sparse(d / "zeros.trt", 4096), SpecError, "found zeros"),
    ],
)
def test_inspect__refuses_what_is_none_of_the_three_in_one_line(
    make: Callable[[Path], Path], kind: type[DgsNetError], words: str, tmp_path: Path
) -> None:
    done = run(make(tmp_path))
    assert type(done.exception) is kind
    assert done.exception.exit_code == 2
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.stdout == ""


def test_inspect__refuses_a_pipe_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "found a device, pipe or socket" in str(run(tmp_path / "pipe.onnx").exception)


def test_inspect__refuses_a_truncated_engine_and_a_truncated_graph(
    engines: dict[str, Path], graphs: Path, tmp_path: Path
) -> None:
    cut = written(tmp_path / "cut.engine", engines["fp16"].read_bytes()[:-1])
    assert "it is cut off" in str(run(cut).exception)
    cut = written(tmp_path / "cut.onnx", (graphs / "model.onnx").read_bytes()[:-1000])
    assert isinstance(run(cut).exception, SpecError)


def test_inspect__of_damaged_graphs_is_an_answer_or_one_line(graphs: Path, tmp_path: Path) -> None:
    model = onnx.load(graphs / "model.onnx")
    for tensor in model.graph.initializer:
        tensor.raw_data = tensor.raw_data[:64]  # so that damage hits the graph more often than a weight
    content, draw = model.SerializeToString(), np.random.default_rng(5)
    outcomes, messages = {"answer": 0, "error": 0}, []
    for _ in range(60):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[draw.integers(0, len(damaged), 3)] = draw.integers(0, 256, 3)
        try:
            json.dumps(onnx_facts(written(tmp_path / "damaged.onnx", damaged.tobytes())), allow_nan=False)
            outcomes["answer"] += 1
        except DgsNetError as err:
            outcomes["error"] += 1
            messages.append(str(err))
    assert min(outcomes.values()) > 5, outcomes
    assert all("\n" not in message for message in messages)


def test_inspect__of_an_engine_in_a_folder_with_a_broken_manifest_still_answers(
    engines: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "engines" / engines["fp16"].name
    path.parent.mkdir()
    path.write_bytes(engines["fp16"].read_bytes())
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    assert "its manifest cannot be used" in run(path).stdout


def test_inspect__of_an_engine_that_the_manifest_does_not_list_says_so(bundle: Path) -> None:
    stray = written(bundle / "engines" / "stray.engine", next((bundle / "engines").iterdir()).read_bytes())
    text = run(stray).stdout
    assert "its manifest does not list this file" in text
    assert "not named as build-engine names engines" in text
