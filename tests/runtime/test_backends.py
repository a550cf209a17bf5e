"""The ONNX Runtime backend: what it checks before, at and after a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from runtime.backends.onnx_session import OnnxSession
from runtime.errors import EngineLoadError, SpecError, UsageError
from runtime.tolerances import TOLERANCES, logit_tolerance


def open_session(folder: Path, **changes: Any) -> OnnxSession:
    options = {"device": "cpu", "embed_dim": 4, "profile": (1, 4, 8)} | changes
    return OnnxSession(folder / "model.onnx", **options)


@pytest.fixture
def mosaics() -> np.ndarray:
    return np.random.default_rng(11).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_run__equals_numpy(
    bundle: Path, mosaics: np.ndarray, tiny_reference: Callable[..., Any], threads: int | None
) -> None:
    with open_session(bundle, threads=threads) as session:
        logit, embedding = session.run(mosaics)
    assert session.name == "onnxruntime:cpu"
    assert (logit.dtype, logit.shape, embedding.shape) == (np.float32, (5,), (5, 4))
    expected = tiny_reference(mosaics)
    assert np.abs(logit - expected[0]).max() < 1e-5
    assert np.abs(embedding - expected[1]).max() < 1e-5
    assert np.ptp(logit) > 1e-3


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What sessions are configured with, as they open."""
    entries: list[tuple[str, str]] = []
    add = onnxruntime.SessionOptions.add_session_config_entry

    def record(options: onnxruntime.SessionOptions, name: str, value: str) -> None:
        entries.append((name, value))
        add(options, name, value)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_session_config_entry", record)
    return entries


def widen(graph: Any) -> None:
    """Puts matrices between the embedding and the logit that are large enough to be worth packing."""
    draw = np.random.default_rng(5)
    product = next(node for node in graph.node if node.output[0] == "product")
    product.input[0] = "narrow"
    added = []
    for name, source, target, shape in (("wide", "embedding", "hidden", (4, 1000)),
                                        ("square", "hidden", "mixed", (1000, 1000)),
                                        ("tall", "mixed", "narrow", (1000, 4))):  # fmt: skip
        matrix = draw.normal(size=shape, scale=shape[0] ** -0.5).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(matrix, name))
        added.append(helper.make_node("MatMul", [source, name], [target]))
    at = list(graph.node).index(product)
    for offset, node in enumerate(added):
        graph.node.insert(at + offset, node)


@pytest.mark.parametrize(
    ("option", "entry"),
    [("prepack", ("session.disable_prepacking", "1")), ("spin", ("session.intra_op.allow_spinning", "0"))],
)
def test_run__gives_the_same_without_what_saves_time(
    bundle: Path, mosaics: np.ndarray, entries: list[tuple[str, str]], option: str, entry: tuple[str, str]
) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    widen(model.graph)
    onnx.save(model, str(bundle / "model.onnx"))
    with open_session(bundle) as session:
        expected, embedding = session.run(mosaics)
    assert entries == []
    with open_session(bundle, **{option: False}) as session:
        found = session.run(mosaics)
    assert entries == [entry]
    assert np.ptp(expected) > 1e-3
    assert np.abs(found[0] - expected).max() < logit_tolerance(TOLERANCES, "fp32")
    assert np.abs(found[1] - embedding).max() < 1e-5


def test_run__takes_views(bundle: Path, mosaics: np.ndarray) -> None:
    with open_session(bundle) as session:
        view = mosaics[:, ::-1, ::-1]
        assert np.array_equal(session.run(view)[0], session.run(np.ascontiguousarray(view))[0])


def test_run__fills_up_small_batches_and_drops_the_surplus(
    bundle: Path, mosaics: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    infer = OnnxSession._infer

    def record(session: OnnxSession, images: np.ndarray) -> Any:
        sizes.append(len(images))
        return infer(session, images)

    monkeypatch.setattr(OnnxSession, "_infer", record)
    with open_session(bundle, profile=(4, 4, 8)) as session:
        logit, embedding = session.run(mosaics[:1])
        assert (logit.shape, embedding.shape) == ((1,), (1, 4))
        assert np.allclose(logit, session.run(mosaics)[0][:1], atol=1e-5)
    assert sizes == [4, 5]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 224, 224, 3), np.float32), "found float32"),
        (np.zeros((224, 224, 3), np.uint8), "found shape"),
        (np.zeros((1, 3, 224, 224), np.uint8), "found shape"),
        (np.zeros((0, 224, 224, 3), np.uint8), "batch of 0"),
        (np.zeros((9, 224, 224, 3), np.uint8), "batch of 9, this engine takes 1 to 8"),
        ([1, 2], "found list"),
    ],
    ids=["dtype", "one image", "planes first", "empty", "too large", "list"],
)
def test_run__checks_images(bundle: Path, images: Any, message: str) -> None:
    with open_session(bundle) as session, pytest.raises(SpecError, match=message):
        session.run(images)


def test_run__after_close_is_an_error(bundle: Path, mosaics: np.ndarray) -> None:
    session = open_session(bundle)
    session.close()
    session.close()
    with pytest.raises(EngineLoadError, match="session is closed"):
        session.run(mosaics)


def test_onnx_session__refuses_what_does_not_load(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"not an onnx file")
    with pytest.raises(EngineLoadError, match="cannot load it") as caught:
        open_session(bundle)
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineLoadError, match="cannot load it"):
        open_session(tmp_path)
    with pytest.raises(UsageError, match="threads"):
        open_session(bundle, threads=0)


def rename_output(graph: Any) -> None:
    graph.output[0].name = graph.node[-1].output[0] = "score"


def fix_batch(graph: Any) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def drop_embedding(graph: Any) -> None:
    del graph.output[1]


def swap_types(graph: Any) -> None:
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


@pytest.mark.parametrize("change", [rename_output, fix_batch, drop_embedding, swap_types])
def test_onnx_session__refuses_graphs_that_break_the_contract(
    bundle: Path, change: Callable[[Any], None]
) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    change(model.graph)
    onnx.save(model, str(bundle / "model.onnx"))
    with pytest.raises(EngineLoadError, match="expected"):
        open_session(bundle)


def test_onnx_session__refuses_another_embedding_width(bundle: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"found outputs .*\[None, 4\].*expected .*\[None, 5\]"):
        open_session(bundle, embed_dim=5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_onnx_session__asked_for_cuda_never_opens_on_the_cpu(bundle: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EngineLoadError, match="asked for CUDAExecutionProvider, onnxruntime opened CPU"):
        open_session(bundle, device="cuda")


def test_run__reports_a_failure_inside_the_graph(bundle: Path, mosaics: np.ndarray) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    graph = model.graph
    # Reading row 4 fails in any batch of fewer than five: a failure that only running can show.
    graph.initializer.append(helper.make_tensor("row", onnx.TensorProto.INT64, [1], [4]))
    graph.node[-1].output[0] = "sum"
    graph.node.append(helper.make_node("Gather", ["sum", "row"], ["fifth"], axis=0))
    graph.node.append(helper.make_node("Max", ["sum", "fifth"], ["logit"]))
    onnx.save(model, str(bundle / "model.onnx"))
    with open_session(bundle) as session:
        assert session.run(mosaics)[0].shape == (5,)
        with pytest.raises(EngineLoadError, match="onnxruntime:cpu failed") as caught:
            session.run(mosaics[:4])
    assert "\n" not in str(caught.value)
