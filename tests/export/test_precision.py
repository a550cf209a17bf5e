"""The FP16 graph: types, islands, limits; run in ONNX Runtime at a level that is safe for FP16 on a CPU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from export.commands.precision_options import policy_from_options, precision_words
from export.onnx_checks import check_contract, check_structure
from export.onnx_files import inferred_types, load_model, save_model
from export.precision.conversion import fp16_from_fp32
from export.precision.policy import PrecisionPolicy
from runtime.errors import EngineBuildError, GateFailedError, ManifestError, UsageError
from runtime.tolerances import TOLERANCES
from tests.export.editing import put_values, set_weight

DEFAULT = PrecisionPolicy()


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images}), strict=True))


def converted(model: Any, folder: Path, policy: PrecisionPolicy = DEFAULT) -> tuple[Any, Any]:
    """Returns (report, FP16 model)."""
    source = folder / "source.onnx"
    onnx.save(model, source)
    report = fp16_from_fp32(source, folder / "model_fp16.onnx", policy)
    return report, load_model(folder / "model_fp16.onnx")


@pytest.mark.parametrize("batch", [1, 3])
def test_fp16__agrees_with_fp32_and_keeps_the_contract(
    batch: int, fp32_onnx: Path, images: Any, tmp_path: Path
) -> None:
    target = tmp_path / "model_fp16.onnx"
    report = fp16_from_fp32(fp32_onnx, target, DEFAULT)
    assert check_contract(target) == check_contract(fp32_onnx)
    check_structure(target)
    reference, half = run(fp32_onnx, images[:batch]), run(target, images[:batch])
    assert {name: value.dtype for name, value in half.items()} == {
        "logit": np.float32,
        "embedding": np.float32,
    }
    error = np.abs(half["logit"] - reference["logit"]).max()
    # Not 0: a graph left in FP32 would agree too well. Measured on this graph: 2e-5 to 1.3e-3.
    assert 0 < error < TOLERANCES["fp16_max_abs_logit"] / 10
    assert np.abs(half["embedding"] - reference["embedding"]).max() < 1e-3
    assert report.fp16_share == 1.0
    assert (report.weighted_nodes, report.weighted_fp32) == (19, 2)
    assert target.stat().st_size < 0.6 * fp32_onnx.stat().st_size


def test_fp16__types_follow_the_policy(vit: Callable[..., Any], tmp_path: Path) -> None:
    report, model = converted(vit(), tmp_path)
    types = inferred_types(model)
    for node in model.graph.node:
        if node.op_type == "Cast" or types[node.output[0]] not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        expected = TensorProto.FLOAT if DEFAULT.keeps_fp32(node.name) else TensorProto.FLOAT16
        inputs = {types[name] for name in node.input} - {TensorProto.INT64, TensorProto.UINT8}
        assert inputs | {types[node.output[0]]} == {expected}, node.name
    # Into FP16 once, out of it once, and the source's own: no value inside an island is ever rounded to FP16.
    assert report.casts == 3
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["LayerNormalization"] == 4
    assert operators["ReduceMean"] == 1
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


def test_fp16__outputs_stay_fp32_where_their_nodes_are_not(
    vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    report, _model = converted(vit(), tmp_path, PrecisionPolicy(fp32_nodes=("preprocess/*",)))
    half = run(tmp_path / "model_fp16.onnx", images)
    assert half["logit"].dtype == half["embedding"].dtype == np.float32
    assert (half["logit"] == half["logit"].astype(np.float16)).all()
    assert report.weighted_fp32 == 0


def test_fp16__a_weight_of_both_precisions_is_split(
    vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    model = vit()
    for node in model.graph.node:
        if node.name == "block_0/gate_in":
            node.input[1] = "full"  # the 255 that preprocess/scale divides by
    _report, half = converted(model, tmp_path)
    kept = {t.name: t.data_type for t in half.graph.initializer if t.name.startswith("full")}
    assert kept == {"full": TensorProto.FLOAT, "full_fp16": TensorProto.FLOAT16}
    reference = run(tmp_path / "source.onnx", images)
    np.testing.assert_allclose(
        run(tmp_path / "model_fp16.onnx", images)["logit"], reference["logit"], atol=5e-3
    )


def test_fp16__casts_of_the_source_follow(vit: Callable[..., Any], images: Any, tmp_path: Path) -> None:
    model = vit()
    set_weight(model, "block_1.gate", lambda value: 2, np.int64)
    position = next(k for k, node in enumerate(model.graph.node) if node.name == "block_1/gate_in")
    cast = onnx.helper.make_node("Cast", ["block_1.gate"], ["two"], name="block_1/two", to=TensorProto.FLOAT)
    model.graph.node.insert(position, cast)
    model.graph.node[position + 1].input[1] = "two"
    # A cast reads the full value: 70000 has no FP16 form, and none is needed to make an integer of it.
    model.graph.initializer.append(numpy_helper.from_array(np.array(7e4, np.float32), "large"))
    weight_cast = onnx.helper.make_node("Cast", ["large"], ["whole"], name="unused", to=TensorProto.INT64)
    model.graph.node.insert(0, weight_cast)
    _report, half = converted(model, tmp_path)
    assert inferred_types(half)["two"] == TensorProto.FLOAT16
    reference = run(tmp_path / "source.onnx", images)
    np.testing.assert_allclose(
        run(tmp_path / "model_fp16.onnx", images)["logit"], reference["logit"], atol=5e-3
    )


def test_fp16__weights_beside_the_source(vit: Callable[..., Any], tmp_path: Path) -> None:
    save_model(vit(), tmp_path / "a.onnx", external_threshold=1000)
    save_model(vit(), tmp_path / "b.onnx")
    for name in ("a", "b"):
        fp16_from_fp32(tmp_path / f"{name}.onnx", tmp_path / f"{name}_fp16.onnx", DEFAULT)
    assert (tmp_path / "a_fp16.onnx").read_bytes() == (tmp_path / "b_fp16.onnx").read_bytes()


def test_policy__a_pattern_without_a_node_is_an_error(fp32_onnx: Path, tmp_path: Path) -> None:
    policy = PrecisionPolicy(fp32_nodes=("preprocess/*", "classifier/*"))
    with pytest.raises(UsageError, match=r"'classifier/\*' matches none of 76 nodes"):
        fp16_from_fp32(fp32_onnx, tmp_path / "model_fp16.onnx", policy)


def test_policy__too_little_fp16_writes_nothing(fp32_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailedError, match=r"found 0\.0% .* expected at least 95\.0%"):
        fp16_from_fp32(fp32_onnx, tmp_path / "model_fp16.onnx", PrecisionPolicy(fp32_nodes=("*",)))
    assert not (tmp_path / "model_fp16.onnx").exists()


def test_policy__a_whole_block_may_stay_fp32(vit: Callable[..., Any], tmp_path: Path) -> None:
    policy = PrecisionPolicy(fp32_nodes=(*DEFAULT.fp32_nodes, "block_1/*"))
    report, _model = converted(vit(), tmp_path, policy)
    assert (report.fp16_share, report.weighted_nodes, report.weighted_fp32) == (1.0, 19, 10)


def test_policy__blocks_and_layers_of_the_user(vit: Callable[..., Any], tmp_path: Path) -> None:
    policy = PrecisionPolicy(fp32_blocks=(1,), fp32_layers=("block_0/up*", "patch/conv"))
    report, model = converted(vit(blocks=12), tmp_path, policy)
    types = inferred_types(model)
    kept = {
        n.name for n in model.graph.node if n.op_type != "Cast" and types[n.output[0]] == TensorProto.FLOAT
    }
    blocks = {name.split("/")[0] for name in kept}
    # Block 1 alone, and not 10 and 11 whose names begin alike; the defaults stay.
    assert blocks == {"preprocess", "patch", "block_0", "block_1", "projection", "head"}
    assert {name for name in kept if name.startswith("block_0/")} == {"block_0/up", "block_0/up_bias"}
    # 8 products a block, of which 1 is block_0/up; Conv, projection and head stand outside.
    assert (report.weighted_nodes, report.weighted_fp32, report.weighted_kept_by_user) == (99, 12, 10)
    assert report.fp16_share == 1.0
    assert report.fp16_share_of_all == 1 - 12 / 99
    assert (
        "kept FP32 as asked: block 1, nodes 'block_0/up*', 'patch/conv' (10 weighted layers)" in report.line()
    )


def test_policy__a_block_that_the_graph_lacks_is_an_error(vit: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"fp32_blocks: found 2, 7, the graph has blocks 0, 1;"):
        converted(vit(), tmp_path, PrecisionPolicy(fp32_blocks=(7, 1, 2)))
    with pytest.raises(UsageError, match=r"found 12, the graph has blocks 0-11;"):
        converted(vit(blocks=12), tmp_path, PrecisionPolicy(fp32_blocks=(12,)))
    model = vit()
    for node in model.graph.node:
        node.name = node.name.replace("block_", "layer")
    with pytest.raises(UsageError, match=r"no node named block_<number>"):
        converted(model, tmp_path, PrecisionPolicy(fp32_blocks=(0,)))
    with pytest.raises(UsageError, match="from 0 on"):
        PrecisionPolicy(fp32_blocks=(-1,))
    assert not (tmp_path / "model_fp16.onnx").exists()


def test_policy__a_layer_pattern_without_a_node_is_an_error(fp32_onnx: Path, tmp_path: Path) -> None:
    policy = PrecisionPolicy(fp32_layers=("block_0/*", "block_9/*"))
    with pytest.raises(UsageError, match=r"'block_9/\*' matches none of 76 nodes"):
        fp16_from_fp32(fp32_onnx, tmp_path / "model_fp16.onnx", policy)


def test_policy__what_the_user_keeps_does_not_lower_the_share_but_foreign_fp32_does() -> None:
    policy = PrecisionPolicy(fp32_blocks=(3,))
    outputs = [("block_3/up", False), ("head/matmul", False), ("block_4/up", True), ("block_5/up", False)]
    assert policy.share(outputs) == 0.5
    assert PrecisionPolicy().share(outputs) == 1 / 3


def test_policy__survives_a_manifest(vit: Callable[..., Any], tmp_path: Path) -> None:
    policy = PrecisionPolicy(fp32_blocks=(1,), fp32_layers=("block_0/up*",), min_fp16_share=0.5)
    report, _model = converted(vit(), tmp_path, policy)
    stored = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert PrecisionPolicy.from_json(stored["policy"]) == policy
    assert stored["weighted_kept_by_user"] == report.weighted_kept_by_user == 9
    assert stored["fp16_share"] == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"fp32_blocks": ["1"]}, {"fp32_blocks": [True]}, {"fp32_blocks": 1}, {"fp32_layers": [1]},
        {"fp32_nodes": None}, {"min_fp16_share": "1"}, {"min_fp16_share": True}, {"min_fp16_share": 0},
        {"fp32_blocks": [-1]}, {"more": 1},
    ],
)  # fmt: skip
def test_policy__a_manifest_that_is_wrong_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="precision policy"):
        PrecisionPolicy.from_json(DEFAULT.to_json() | change)
    with pytest.raises(ManifestError, match="precision policy"):
        PrecisionPolicy.from_json([])


@pytest.mark.parametrize(
    ("given", "blocks"), [(("3,7",), (3, 7)), (("4-6", "0"), (0, 4, 5, 6)), (("7, 3,3",), (3, 7)), ((), ())]
)
def test_options__become_a_policy_and_words_again(given: tuple[str, ...], blocks: tuple[int, ...]) -> None:
    policy = policy_from_options(given, ("stem/*", "stem/*"), 0.5)
    assert policy.fp32_blocks == blocks
    assert policy.fp32_layers == ("stem/*",)
    assert policy.fp32_nodes == DEFAULT.fp32_nodes
    words = precision_words(policy)
    assert words[-4:] == ("--fp32-layers", "stem/*", "--min-fp16-share", "0.5")
    assert policy_from_options(tuple(words[1:2]) if blocks else (), ("stem/*",), 0.5) == policy


def test_options__the_defaults_say_nothing() -> None:
    assert policy_from_options((), (), None) == DEFAULT
    assert precision_words(DEFAULT) == ()


@pytest.mark.parametrize("text", ["", "x", "3,,7", "-1", "6-4", "1.5", "3;7", "99999"])
def test_options__what_is_no_block_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected block numbers such as 3,7 or 4-6"):
        policy_from_options((text,), (), None)


def test_options__other_bad_values() -> None:
    with pytest.raises(UsageError, match="empty pattern"):
        policy_from_options((), ("",), None)
    with pytest.raises(UsageError, match="min_fp16_share: found 95"):
        policy_from_options((), (), 95.0)


@pytest.mark.parametrize("value", [1e5, -70000.0, 65504.1])
def test_weights__out_of_range_are_named(value: float, vit: Callable[..., Any], tmp_path: Path) -> None:
    model = vit()
    put_values(model, "block_1/up.weight", (0, 0), value)
    with pytest.raises(
        EngineBuildError, match=r"weight block_1/up\.weight: found a magnitude of .* at most 65504"
    ):
        converted(model, tmp_path)


@pytest.mark.parametrize("name", ["block_0/q.bias", "head.weight"], ids=["fp16", "fp32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights__not_finite_are_named(
    name: str, value: float, vit: Callable[..., Any], tmp_path: Path
) -> None:
    model = vit()
    put_values(model, name, 0, value)
    with pytest.raises(EngineBuildError, match=rf"weight {name}: found NaN or infinity"):
        converted(model, tmp_path)


def test_weights__the_fp32_nodes_may_hold_large_ones(vit: Callable[..., Any], tmp_path: Path) -> None:
    model = vit()
    put_values(model, "head.weight", 0, 1e5)
    _report, half = converted(model, tmp_path)
    kept = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    assert kept["head.weight"].dtype == np.float32
    assert kept["head.weight"].max() == 1e5


def test_weights__what_flushes_to_zero_is_counted(vit: Callable[..., Any], tmp_path: Path) -> None:
    model = vit()
    before, _half = converted(model, tmp_path)
    put_values(model, "block_0/q.weight", np.s_[0, :4], [1e-9, -1e-9, 2e-8, 0.0])
    after, _half = converted(model, tmp_path)
    assert after.flushed_weights == before.flushed_weights + 3


def test_graph__every_node_needs_its_own_name(vit: Callable[..., Any], tmp_path: Path) -> None:
    model = vit()
    model.graph.node[4].name = ""
    with pytest.raises(EngineBuildError, match="name each node once"):
        converted(model, tmp_path)
