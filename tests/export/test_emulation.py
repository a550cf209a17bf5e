"""The FP16 emulation against numpy's float16, operator by operator, in a real ONNX Runtime session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from export.onnx_files import load_model, save_model
from export.parity.forms.fp16_graph import fp16_loader_check
from export.parity.limits import own_limits
from export.parity.statistics.compare import HopReport, compare_logits
from export.precision import graph_session
from export.precision.emulation import MOVING_OPS, computed_tensors, emulated_from_fp16
from export.precision.policy import PrecisionPolicy
from export.precision.watching import Seen, open_emulation, open_watched_fp32
from runtime.decision import Decision
from runtime.errors import EngineLoadError, SpecError
from tests.export.editing import put_values, set_weight, write_graphs

LIMITS = own_limits("fp16")
Make = Callable[..., Any]


def rounded(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def weights(model: Any) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def tapped(path: Path, names: list[str], images: np.ndarray) -> dict[str, np.ndarray]:
    with open_emulation(path, taps=names, threads=1) as session:
        return session.run_taps(images)[2]


@pytest.fixture
def half(vit: Make, tmp_path: Path) -> Path:
    return write_graphs(tmp_path, vit())[1]


def test_emulation__every_operator_rounds_once_as_numpy_does(half: Path, images: Any) -> None:
    model = load_model(half)
    constants = weights(model)
    names = [name for node in model.graph.node for name in node.output]
    values = tapped(half, names, images) | {
        name: value.astype(np.float32) for name, value in constants.items() if value.dtype == np.float16
    }
    half_names = {tensor.name for tensor in computed_tensors(model) if tensor.is_half}
    exact = {"Add": np.add, "Mul": np.multiply}
    checked = dict.fromkeys(("Add", "Mul", "MatMul", "LayerNormalization", "Softmax", "Conv", "Sigmoid"), 0)
    for node in model.graph.node:
        name = node.output[0]
        if name not in half_names:
            continue
        np.testing.assert_array_equal(values[name], rounded(values[name]), err_msg=node.name)
        checked[node.op_type] = checked.get(node.op_type, 0) + 1
        if node.op_type in exact:
            expected = rounded(exact[node.op_type](values[node.input[0]], values[node.input[1]]))
            np.testing.assert_array_equal(values[name], expected, err_msg=node.name)
        elif node.op_type == "MatMul":
            product = values[node.input[0]].astype(np.float64) @ values[node.input[1]].astype(np.float64)
            # Sums in FP32: within half a step of FP16 but for what FP32 itself lost.
            step = np.spacing(np.abs(product).astype(np.float16)).astype(np.float64)
            assert (np.abs(values[name] - product) <= 0.5 * step + 2e-6).all(), node.name
    assert min(checked.values()) > 0, checked


def test_emulation__weights_are_rounded_and_fp32_nodes_are_not(half: Path, images: Any) -> None:
    stored = weights(load_model(half))["block_0/up.weight_fp16"]
    names = ["block_0/up.weight_fp16", "preprocess/std:0", "projection/linear:0"]
    values = tapped(half, names, images)
    np.testing.assert_array_equal(values[names[0]], stored.astype(np.float32))
    for name in names[1:]:
        assert (values[name] != rounded(values[name])).mean() > 0.5, name


def test_emulation__a_block_kept_fp32_is_not_rounded(vit: Make, images: Any, tmp_path: Path) -> None:
    _full, path = write_graphs(tmp_path, vit(), PrecisionPolicy(fp32_blocks=(0,)))
    values = tapped(path, ["block_0/up:0", "block_1/up:0", "block_0/residual_2:0"], images)
    assert (values["block_0/up:0"] != rounded(values["block_0/up:0"])).mean() > 0.5
    np.testing.assert_array_equal(values["block_1/up:0"], rounded(values["block_1/up:0"]))


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"])
def test_emulation__onnxruntime_keeps_every_cast_pair(half: Path, level: str, tmp_path: Path) -> None:
    model = load_model(half)
    count = sum(tensor.is_half for tensor in computed_tensors(model))
    emulated_from_fp16(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    to_half = [n for n in nodes if n.op_type == "Cast" and n.attribute[0].i == TensorProto.FLOAT16]
    assert len(to_half) == count > 30


def test_session__refuses_an_onnxruntime_without_the_casts(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = graph_session.open_cpu_session

    def without_casts(graph: bytes, *rest: Any, **named: Any) -> Any:
        model = onnx.load_from_string(graph)
        for node in model.graph.node:
            if node.op_type == "Cast" and node.input[0] in ("doubled", "half"):
                node.op_type = "Identity"
                del node.attribute[:]
        return real(model.SerializeToString(), *rest, **named)

    monkeypatch.setattr(graph_session, "open_cpu_session", without_casts)
    with pytest.raises(EngineLoadError, match=r"450000\.0.*leaves out casts"):
        open_emulation(half)


def test_session__reads_weights_where_they_lie_and_writes_nothing(
    vit: Make, images: Any, tmp_path: Path
) -> None:
    _full, inline = write_graphs(tmp_path, vit())
    folder = tmp_path / "beside"
    folder.mkdir()
    save_model(load_model(inline), folder / "model_fp16.onnx", external_threshold=1000)
    before = sorted(path.name for path in folder.iterdir())
    assert before == ["model_fp16.onnx", "model_fp16.onnx.data"]
    with open_emulation(inline, threads=1) as one, open_emulation(folder / before[0], threads=1) as other:
        for a, b in zip(one.run(images), other.run(images), strict=True):
            np.testing.assert_array_equal(a, b)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_emulation__refuses_a_graph_without_fp16(fp32_onnx: Path) -> None:
    with pytest.raises(SpecError, match=r"found no FP16 in the graph"):
        open_emulation(fp32_onnx)


def test_computed_tensors__name_the_same_value_in_both_graphs(vit: Make, tmp_path: Path) -> None:
    policy = PrecisionPolicy(fp32_layers=("block_1/mixed", "block_1/mixed_*"))
    model, half_model = (load_model(path) for path in write_graphs(tmp_path, vit(), policy))
    full, half = computed_tensors(model), computed_tensors(half_model)
    sources = {tensor.source for tensor in full}
    assert {tensor.source for tensor in half} == sources
    assert len(full) == len(sources)
    # Moved twice in FP32 between the product and the cast that makes it FP16 again.
    edge = next(tensor for tensor in half if tensor.node == "cast/block_1/mixed_join:0_fp16")
    assert edge.source == ("block_1/mixed", 0)
    product = next(tensor for tensor in full if tensor.node == "block_1/mixed")
    assert "block_1/out" in product.readers
    assert all(node.op_type not in MOVING_OPS for node in model.graph.node
               if node.name in {tensor.node for tensor in full})  # fmt: skip


def test_watching__counts_what_numpy_counts(vit: Make, images: Any, tmp_path: Path) -> None:
    model = vit()

    put_values(model, "block_1/up.bias", np.s_[:3], [np.nan, np.inf, -np.inf])
    onnx.save(model, tmp_path / "model.onnx")
    with open_watched_fp32(tmp_path / "model.onnx", threads=1) as session:
        session.run(images[:2])
        session.run(images[2:])
        before, spoilt = session.seen["block_1/up:0"], session.seen["block_1/up_bias:0"]
        first = session.first_overflow
    assert before.is_finite
    assert spoilt == Seen(np.inf, 2 * 3 * 49, 3 * 49)
    assert first is not None
    assert first.node == "block_1/up_bias"
    # The part before the spoilt one is not in it.
    assert [part for part, _inf, _nan in session.overflows()] == ["block_1", "pool", "projection", "head"]


def test_watching__largest_is_over_all_runs(half: Path, images: Any) -> None:
    name = "block_1/residual_2:0"
    values = np.concatenate([tapped(half, [name], images[k : k + 1])[name] for k in range(3)])
    with open_emulation(half, threads=1) as session:
        for k in range(3):
            session.run(images[k : k + 1])
    assert session.seen[name] == Seen(float(np.abs(values).max()))


def reference_of(path: Path, images: Any) -> tuple[np.ndarray, np.ndarray]:
    with open_watched_fp32(path, threads=1) as session:
        return session.run(images)


def emulated(half: Path, images: Any, reference: tuple[np.ndarray, np.ndarray]) -> tuple[HopReport, Any]:
    """Returns the comparison with a reference, and the session that watched the values inside."""
    with open_emulation(half, threads=1) as session:
        logits, embeddings = session.run(images)
    hop = compare_logits(
        "emulated",
        [str(k) for k in range(len(images))],
        reference[0],
        logits,
        decision=Decision(),
        limits=LIMITS,
        embeddings=(reference[1], embeddings),
    )
    return hop, session


def test_emulation__is_near_fp32_and_not_fp32(half: Path, images: Any) -> None:
    hop, session = emulated(half, images, reference_of(half.with_name("model.onnx"), images))
    assert hop.passed
    # Not 0: that would be FP32 arithmetic. Measured on this graph: 1e-4 to 2e-3.
    assert 0 < hop.max_abs_logit < LIMITS.max_abs_logit / 5
    assert session.overflows() == ()
    assert session.first_overflow is None


def test_emulation__shows_a_wrong_weight(vit: Make, images: Any, tmp_path: Path) -> None:
    full, half = write_graphs(tmp_path, vit())
    reference = reference_of(full, images)
    model = load_model(half)
    set_weight(model, "block_1/down.weight_fp16", lambda values: np.roll(values, 1, 0))
    onnx.save(model, half)
    assert not emulated(half, images, reference)[0].passed


def test_emulation__sees_an_overflow_that_no_logit_shows(vit: Make, images: Any, tmp_path: Path) -> None:
    model = vit()
    # The sigmoid makes 0 or 1 of it, whether it is 70,000 or infinite.
    put_values(model, "block_1.gate", ..., 60000.0)
    full, half = write_graphs(tmp_path, model)
    reference = reference_of(full, images)
    assert fp16_loader_check(half, images, reference, decision=Decision(), limits=LIMITS).passed
    hop, session = emulated(half, images, reference)
    assert hop.max_abs_logit < LIMITS.max_abs_logit
    assert session.first_overflow.node == "block_1/gate_in"
    assert [part for part, _inf, _nan in session.overflows()] == ["block_1"]
