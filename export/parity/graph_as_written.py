"""The FP32 graph computed node by node, as it is written, without the optimiser of ONNX Runtime.

The engine of the bundle runs the same file optimised. Kept apart, a wrong graph and a wrong optimisation are
two hops of the chain; it costs no more (ViT-B/32, batch 16, two cores: 1.68 s of CPU time against 1.65 s).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.errors import EngineLoadError, MissingDependencyError
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME

# What goes wrong comes back as an exception, and then once more in colour on standard error.
_ONLY_FATAL = 4


class GraphAsWritten(Backend):
    """An ONNX Runtime session on the CPU with every optimisation off.

    Args:
        path: the ONNX file.
        embed_dim: width D of the embedding.
        profile: (min, opt, max) batch size.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineLoadError: the file cannot be loaded.
    """

    def __init__(self, path: Path, *, embed_dim: int, profile: tuple[int, int, int]) -> None:
        super().__init__("onnx as written", embed_dim, profile)
        try:
            import onnxruntime
        except ImportError as err:
            raise MissingDependencyError(
                f'onnxruntime does not import ({_one_line(err)}); pip install "dgsnet[cpu]"'
            ) from err
        self._path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ONLY_FATAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
            raise EngineLoadError(f"{path.name}: onnxruntime cannot load it ({_one_line(err)})") from err

    def close(self) -> None:
        """Frees the session."""
        self._session = None

    def _infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            logit, embedding = self._session.run([LOGIT_NAME, EMBEDDING_NAME], {INPUT_NAME: images})
        except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
            raise EngineLoadError(
                f"{self._path.name}: a batch of {len(images)} failed ({_one_line(err)})"
            ) from err
        return np.asarray(logit), np.asarray(embedding)


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__
