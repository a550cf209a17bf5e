"""The graph for ONNX Runtime on a CPU computes what the contract graph computes, in fewer, larger steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from benchmarks.onnxruntime_cpu.rewriting import rewrite_for_cpu, write_cpu_graph
from export.graph.detector import detector_graph
from export.graph.tower import tower_from_torch
from export.onnx_files import load_model, save_graph
from runtime.errors import EngineBuildError
from train.model.backbone import load_clip
from train.model.detector import DgsNet

BLOCKS = 4


def outputs(path: Path | bytes, images: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = path if isinstance(path, bytes) else str(path)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(["logit", "embedding"], {"images": images})]


def assert_same(first: Path, second: Path | bytes, *, batch: int) -> None:
    images = np.random.default_rng(batch).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    for one, other in zip(outputs(first, images), outputs(second, images), strict=True):
        assert one.shape == other.shape
        # Measured: 2e-6, where logits differ from picture to picture by more than 1e-3.
        assert np.abs(one - other).max() < 2e-5
    assert batch == 1 or np.ptp(outputs(second, images)[1], axis=0).max() > 1e-3


def write_contract(
    folder: Path, *, activation: str = "GELU", layer_scale: bool = False, beside: bool
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    clip, info = load_clip("dgsnet-tiny-p32", "random", seed=1)
    for block in clip.visual.transformer.resblocks:
        if activation == "QuickGELU":
            from open_clip.transformer import QuickGELU

            block.mlp.gelu = QuickGELU()
        if layer_scale:
            from open_clip.transformer import LayerScale

            block.ls_1 = LayerScale(clip.visual.conv1.out_channels, 0.7)
    torch.manual_seed(0)
    model = DgsNet(clip.visual, info.embed_dim).eval()
    head = model.head_image
    graph = detector_graph(
        tower_from_torch(model.visual), head.weight.detach().numpy(), head.bias.detach().numpy()
    )
    path = folder / "model.onnx"
    save_graph(graph, path, external_threshold=0 if beside else 10**9)
    return path


@pytest.mark.parametrize("beside", [False, True], ids=["inline", "data file"])
@pytest.mark.parametrize(
    ("activation", "layer_scale"), [("GELU", False), ("QuickGELU", False), ("GELU", True)]
)
def test_cpu_graph__computes_the_same(
    tmp_path: Path, activation: str, layer_scale: bool, beside: bool
) -> None:
    source = write_contract(tmp_path, activation=activation, layer_scale=layer_scale, beside=beside)
    target = tmp_path / "model.cpu.onnx"
    report = write_cpu_graph(source, target)
    assert (report.linear_layers, report.attention_scores) == (4 * BLOCKS, BLOCKS)
    for batch in (1, 3):
        assert_same(source, target, batch=batch)
    model = load_model(target, weights=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["Gemm"], kinds["FusedMatMul"]) == (4 * BLOCKS, BLOCKS)
    # Projection, head and the mixing of values are all that is left.
    assert kinds["MatMul"] == BLOCKS + 2
    # Every number of the packed weights is the source's own.
    before = {t.name: t for t in load_model(source, weights=False).graph.initializer}
    after = {t.name: t for t in model.graph.initializer if not t.name.startswith("cpu/")}
    assert set(after) <= set(before)
    assert all(tensor == before[name] for name, tensor in after.items())


def test_cpu_graph__shares_the_data_file(tmp_path: Path) -> None:
    source = write_contract(tmp_path, beside=True)
    data = (tmp_path / "model.onnx.data").read_bytes()
    write_cpu_graph(source, tmp_path / "model.cpu.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data", "model.cpu.onnx"}
    assert (tmp_path / "model.onnx.data").read_bytes() == data
    assert (tmp_path / "model.cpu.onnx").stat().st_size < 100_000
    with pytest.raises(EngineBuildError, match="beside"):
        write_cpu_graph(source, tmp_path / "elsewhere" / "model.cpu.onnx")


def test_cpu_graph__has_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        source = write_contract(tmp_path / name, beside=True)
        write_cpu_graph(source, tmp_path / name / "model.cpu.onnx")
        written.append((tmp_path / name / "model.cpu.onnx").read_bytes())
    assert written[0] == written[1]


def test_cpu_graph__takes_a_graph_that_somebody_else_wrote(fp32_onnx: Path) -> None:
    target = fp32_onnx.with_name("model.cpu.onnx")
    report = write_cpu_graph(fp32_onnx, target)
    assert (report.linear_layers, report.attention_scores) == (12, 2)
    for batch in (1, 3):
        assert_same(fp32_onnx, target, batch=batch)


def edited(vit: Callable[..., Any], change: Callable[[Any], None]) -> Any:
    model = vit()
    change(model.graph)
    return model


def named(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if node.name == name)


def share_the_turned_keys(graph: Any) -> None:
    """The transposed keys have a second reader, which sees their order: it must not change."""
    for name, value in (("flat_shape", [-1]), ("second", [1])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))
    source = named(graph, "block_0/k_order").output[0]
    graph.node.append(helper.make_node("Reshape", [source, "flat_shape"], ["flat_keys"]))
    graph.node.append(helper.make_node("Gather", ["flat_keys", "second"], ["one_key"]))
    squeeze = named(graph, "head/squeeze")
    squeeze.output[0] = "squeezed"
    graph.node.append(helper.make_node("Add", ["squeezed", "one_key"], ["logit"]))


def share_a_product(graph: Any) -> None:
    """A product without its bias has a second reader: it must stay."""
    source = named(graph, "block_1/up").output[0]
    graph.node.append(helper.make_node("ReduceMax", [source], ["largest"], keepdims=0))
    squeeze = named(graph, "head/squeeze")
    squeeze.output[0] = "squeezed"
    graph.node.append(helper.make_node("Add", ["squeezed", "largest"], ["logit"]))


def add_along_tokens(graph: Any) -> None:
    """A constant [T, 1] differs from row to row: the Add must see tokens, not rows."""
    ramp = np.linspace(-1, 1, 49, dtype=np.float32)[:, None]
    graph.initializer.append(numpy_helper.from_array(ramp, "ramp"))
    residual = named(graph, "block_0/residual_2")
    name = residual.output[0]
    residual.output[0] = "before_ramp"
    index = list(graph.node).index(residual) + 1
    graph.node.insert(index, helper.make_node("Add", ["before_ramp", "ramp"], [name], name="ramp"))


def normalise_over_tokens_too(graph: Any) -> None:
    """A softmax over the tokens' axis mixes rows."""
    residual = named(graph, "block_0/residual_2")
    name = residual.output[0]
    residual.output[0] = "before_softmax"
    index = list(graph.node).index(residual) + 1
    graph.node.insert(index, helper.make_node("Softmax", ["before_softmax"], [name], axis=1))


@pytest.mark.parametrize(
    "change",
    [share_the_turned_keys, share_a_product, add_along_tokens, normalise_over_tokens_too],
)
def test_cpu_graph__leaves_alone_what_it_may_not_move(
    vit: Callable[..., Any], tmp_path: Path, change: Callable[[Any], None]
) -> None:
    model = edited(vit, change)
    source = tmp_path / "model.onnx"
    onnx.save(model, str(source))
    report = rewrite_for_cpu(model)
    assert report.linear_layers >= 11
    for batch in (1, 3):
        assert_same(source, model.SerializeToString(), batch=batch)


def test_cpu_graph__refuses_a_graph_with_nothing_to_gain(vit: Callable[..., Any], tmp_path: Path) -> None:
    onnx.save(vit(blocks=0), str(tmp_path / "model.onnx"))
    with pytest.raises(EngineBuildError, match="no linear layer"):
        write_cpu_graph(tmp_path / "model.onnx", tmp_path / "model.cpu.onnx")
    assert not (tmp_path / "model.cpu.onnx").exists()
