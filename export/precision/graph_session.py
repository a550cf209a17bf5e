"""A graph in memory, run by ONNX Runtime on a CPU with the casts that were written into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.cpu_session import open_cpu_session
from export.onnx_checks import check_contract
from export.onnx_files import require_onnx
from runtime.backends.base import Backend
from runtime.bundle.engine_entry import MAX_BATCH
from runtime.errors import EngineLoadError, UsageError, one_line
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME

if TYPE_CHECKING:
    from onnx import ModelProto

Taps = dict[str, NDArray[Any]]
_PROBE = (450_000.0, 1.0 + 2.0**-12, 2.0**-24)
_PROBE_ROUNDED = (float("inf"), 1.0, 2.0**-24)


class GraphSession(Backend):
    """An ONNX graph that follows the contract, with any of its tensors as further outputs.

    Args:
        model: the graph; weights may lie in a data file.
        folder: where that data file is.
        name: what ran, as reports show it.
        taps: names of tensors that ``run_taps`` gives besides logit and embedding.
        max_batch: largest batch that a run takes.
        threads: CPU threads inside one operator; None leaves it to ONNX Runtime (one per core).

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineLoadError: the graph cannot be loaded, or ONNX Runtime left out casts.
        SpecError: the graph does not follow the contract.
        UsageError: ``threads`` is below 1.
    """

    def __init__(
        self,
        model: ModelProto,
        folder: Path,
        *,
        name: str,
        taps: Sequence[str] = (),
        max_batch: int = MAX_BATCH,
        threads: int | None = None,
    ) -> None:
        super().__init__(name, check_contract(model), (1, 1, max_batch))
        if threads is not None and threads < 1:
            raise UsageError(f"threads: found {threads}, expected at least 1")
        _prove_rounding()
        self._taps = list(taps)
        outputs = {value.name for value in model.graph.output}
        for tap in self._taps:
            if tap not in outputs:
                model.graph.output.add(name=tap)
        self._session: Any = open_cpu_session(
            model.SerializeToString(), name, folder=folder, threads=threads, is_frugal=True
        )

    def __enter__(self) -> GraphSession:
        return self

    def close(self) -> None:
        """Frees the session."""
        self._session = None

    def run_taps(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], Taps]:
        """Returns logits ``[n]``, embeddings ``[n, D]`` and the tapped tensors by name, for one batch.

        Raises:
            SpecError: ``images`` is no uint8 ``[n, 224, 224, 3]`` within the largest batch.
            EngineLoadError: the graph failed.
        """
        self._check_images(images)
        logit, embedding, *values = self._run([LOGIT_NAME, EMBEDDING_NAME, *self._taps], images)
        return logit, embedding, dict(zip(self._taps, values, strict=True))

    def _infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logit, embedding = self._run([LOGIT_NAME, EMBEDDING_NAME], images)
        return logit, embedding

    def _run(self, names: list[str], images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        if self._session is None:
            raise EngineLoadError(f"{self.name}: the session is closed; open it again")
        try:
            return [
                np.asarray(v) for v in self._session.run(names, {INPUT_NAME: np.ascontiguousarray(images)})
            ]
        except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
            raise EngineLoadError(f"{self.name}: running the graph failed ({one_line(err)})") from err


def _prove_rounding() -> None:
    """Runs a probe: a pair of casts between two operators must round, and make infinity of 450,000.

    Raises:
        EngineLoadError: it does not; an optimiser took the casts out.
    """
    helper, kinds = require_onnx().helper, require_onnx().TensorProto
    names = ["probe", "doubled", "half", "rounded", "result"]
    probe, doubled, half, rounded, result = names
    nodes = [
        helper.make_node("Mul", [probe, "one"], [doubled]),
        helper.make_node("Cast", [doubled], [half], to=kinds.FLOAT16),
        helper.make_node("Cast", [half], [rounded], to=kinds.FLOAT),
        helper.make_node("Abs", [rounded], [result]),
    ]
    value = {key: helper.make_tensor_value_info(key, kinds.FLOAT, [len(_PROBE)]) for key in (probe, result)}
    one = helper.make_tensor("one", kinds.FLOAT, [1], [1.0])
    graph = helper.make_graph(nodes, "probe", [value[probe]], [value[result]], initializer=[one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = open_cpu_session(model.SerializeToString(), "fp16 emulation", threads=1, is_frugal=True)
    found = session.run(None, {probe: np.array(_PROBE, np.float32)})[0]
    if not np.array_equal(found, np.array(_PROBE_ROUNDED, np.float32)):
        raise EngineLoadError(
            f"fp16 emulation: onnxruntime gave {found.tolist()} for {list(_PROBE)} rounded to FP16, expected "
            f"{list(_PROBE_ROUNDED)}; it leaves out casts, use a version between 1.23 and 1.31"
        )
