"""ONNX files as the exporter writes and reads them, run in a real ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graph.builder import WrittenGraph
from export.onnx_checks import check_contract, check_structure, opset_version
from export.onnx_files import load_model, save_graph, save_model
from runtime.errors import EngineBuildError, SpecError

TRACE = "/home/someone/site-packages/exporter.py"


def run(path: Path, images: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"images": images}
    )


def with_traces(model: Any) -> Any:
    """Puts a path wherever an exporter could leave one."""
    model.doc_string = TRACE
    model.metadata_props.add(key="built", value=TRACE)
    model.producer_version = TRACE
    model.graph.doc_string = TRACE
    model.graph.metadata_props.add(key="stack", value=TRACE)
    for item in (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.node):
        item.doc_string = TRACE
        item.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=TRACE)
    model.graph.value_info.append(helper.make_tensor_value_info("pool:0", TensorProto.FLOAT, ["batch", 64]))
    model.graph.value_info[0].doc_string = TRACE
    for node in model.graph.node:
        for attribute in node.attribute:
            attribute.doc_string = TRACE
    inner = helper.make_node("Identity", ["a"], ["b"], doc_string=TRACE)
    inner.metadata_props.add(key="stack", value=TRACE)
    function = helper.make_function("local", "f", ["a"], ["b"], [inner], [helper.make_opsetid("", 18)])
    function.doc_string = TRACE
    function.metadata_props.add(key="stack", value=TRACE)
    model.functions.append(function)
    branch = helper.make_graph([inner], "branch", [], [], doc_string=TRACE)
    model.graph.node.append(helper.make_node("If", ["images"], ["unused"], then_branch=branch, name="choice"))
    return model


def test_save_model__drops_every_trace_and_leaves_its_argument(
    vit: Callable[..., Any], tmp_path: Path
) -> None:
    model = with_traces(vit())
    before = model.SerializeToString(deterministic=True)
    save_model(model, tmp_path / "model.onnx")
    written = (tmp_path / "model.onnx").read_bytes()
    assert TRACE.encode() in before
    assert b"/home" not in written
    assert b".py" not in written
    assert model.SerializeToString(deterministic=True) == before


def test_save_model__small_model_is_one_file(vit: Callable[..., Any], images: Any, tmp_path: Path) -> None:
    onnx.save(vit(), tmp_path / "plain.onnx")
    (tmp_path / "model.onnx.data").write_bytes(b"weights of an earlier model")
    save_model(vit(), tmp_path / "model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "plain.onnx"]
    for ours, theirs in zip(
        run(tmp_path / "model.onnx", images), run(tmp_path / "plain.onnx", images), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_save_model__large_weights_go_beside_and_travel(
    vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    save_model(vit(), tmp_path / "inline.onnx")
    (tmp_path / "made").mkdir()
    save_model(vit(), tmp_path / "made" / "model.onnx", external_threshold=1000)
    shutil.move(tmp_path / "made", tmp_path / "moved")
    path = tmp_path / "moved" / "model.onnx"
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 50_000 < path.with_name("model.onnx.data").stat().st_size
    for ours, theirs in zip(run(path, images), run(tmp_path / "inline.onnx", images), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    check_structure(path)
    again = tmp_path / "again.onnx"
    save_model(load_model(path), again)
    assert again.read_bytes() == (tmp_path / "inline.onnx").read_bytes()


def test_save_model__same_graph_same_bytes(vit: Callable[..., Any], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_model(vit(), tmp_path / folder / "model.onnx", external_threshold=1000)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("threshold", [1000, 10**9], ids=["beside", "inside"])
def test_save_graph__gives_the_bytes_of_save_model(
    threshold: int, vit: Callable[..., Any], tmp_path: Path
) -> None:
    model = vit()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    save_model(model, tmp_path / "a" / "m.onnx", external_threshold=threshold)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # Column by column in memory, and still row by row in the file.
    weights = {n: np.asfortranarray(w) if w.ndim == 2 else w for n, w in weights.items()}
    assert any(not w.flags.c_contiguous for w in weights.values())
    del model.graph.initializer[:]
    save_graph(WrittenGraph(model, weights), tmp_path / "b" / "m.onnx", external_threshold=threshold)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_save_model__refuses_weights_that_are_not_loaded(vit: Callable[..., Any], tmp_path: Path) -> None:
    save_model(vit(), tmp_path / "model.onnx", external_threshold=1000)
    with pytest.raises(EngineBuildError, match=r"weight patch\.weight is not in memory"):
        save_model(load_model(tmp_path / "model.onnx", weights=False), tmp_path / "other.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00\x01 not a graph", b"{}"], ids=["empty", "binary", "json"])
def test_load_model__refuses_what_is_not_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(SpecError, match=r"^model\.onnx: [^\n]+ export it again$"):
        load_model(tmp_path / "model.onnx")


def test_load_model__refuses_a_truncated_or_absent_file(fp32_onnx: Path) -> None:
    fp32_onnx.write_bytes(fp32_onnx.read_bytes()[:-1000])
    with pytest.raises(SpecError, match="cannot be read as ONNX"):
        load_model(fp32_onnx)
    fp32_onnx.unlink()
    with pytest.raises(SpecError, match="No such file"):
        load_model(fp32_onnx)


def test_load_model__refuses_damaged_weights_beside_it(vit: Callable[..., Any], tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    save_model(vit(), path, external_threshold=1000)
    content = data.read_bytes()
    data.write_bytes(content[:-4])
    with pytest.raises(SpecError, match=rf"found {len(content) - 4} bytes, expected at least {len(content)}"):
        load_model(path)
    data.unlink()
    with pytest.raises(SpecError, match=r"weights model\.onnx\.data are missing"):
        load_model(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "", "..", "a\\b"])
def test_load_model__refuses_weights_elsewhere(
    location: str, vit: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    save_model(vit(), path, external_threshold=1000)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SpecError, match="expected a file beside the graph"):
        load_model(path)


def test_check_contract__gives_the_embedding_width(fp32_onnx: Path) -> None:
    assert check_contract(fp32_onnx) == 32
    assert check_contract(load_model(fp32_onnx)) == 32
    assert opset_version(load_model(fp32_onnx)) == 18


def _rename_input(model: Any) -> None:
    model.graph.input[0].name = "image"


def _float_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _planar_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3


def _static_batch(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def _other_batch(model: Any) -> None:
    model.graph.output[1].type.tensor_type.shape.dim[0].dim_param = "rows"


def _half_logit(model: Any) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _column_logit(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1


def _open_width(model: Any) -> None:
    model.graph.output[1].type.tensor_type.shape.dim[1].dim_param = "width"


def _swapped(model: Any) -> None:
    model.graph.output.append(model.graph.output[0])
    del model.graph.output[0]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_rename_input, r"inputs: found \['image'\], expected \['images'\]"),
        (_float_input, "images: found float "),
        (_planar_input, r"images: found uint8 \['batch', 3, 224, 3\]"),
        (_static_batch, r"logit: found float \[1\]"),
        (_other_batch, r"embedding: found float \['rows', 32\], expected float \['batch', 'D'\]"),
        (_half_logit, "logit: found float16 "),
        (_column_logit, r"logit: found float \['batch', 1\]"),
        (_open_width, r"embedding: found float \['batch', 'width'\]"),
        (_swapped, r"outputs: found \['embedding', 'logit'\]"),
    ],
)
def test_check_contract__names_what_differs(
    change: Callable[[Any], None], found: str, vit: Callable[..., Any]
) -> None:
    model = vit()
    change(model)
    with pytest.raises(SpecError, match=found):
        check_contract(model)


def test_check_structure__refuses_invalid_graphs(vit: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = vit()
    model.graph.node[3].name = model.graph.node[2].name
    save_model(model, path)
    with pytest.raises(SpecError, match="two nodes named 'preprocess/mean'"):
        check_structure(path)
    model = vit()
    model.graph.node.append(model.graph.node[5])
    del model.graph.node[5]
    save_model(model, path)
    with pytest.raises(
        SpecError, match="not a valid ONNX graph: Nodes in a graph must be topologically sorted"
    ):
        check_structure(path)
    model = vit()
    model.graph.initializer[-1].data_type = TensorProto.INT32
    del model.graph.initializer[-1].dims[:]
    model.graph.initializer[-1].raw_data = b"\1\0\0\0"
    save_model(model, path)
    with pytest.raises(SpecError, match="not a valid ONNX graph"):
        check_structure(path)
