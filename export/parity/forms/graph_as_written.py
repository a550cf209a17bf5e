"""The FP32 graph computed node by node, as it is written, without the optimiser of ONNX Runtime.

The engine of the bundle runs the same file optimised. Kept apart, a wrong graph and a wrong optimisation are
two hops of the chain; it costs no more (ViT-B/32, batch 16, two cores: 1.68 s of CPU time against 1.65 s).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.cpu_session import open_cpu_session
from runtime.backends.base import Backend
from runtime.errors import EngineLoadError, one_line
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME


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
        self._path = path
        self._session = open_cpu_session(str(path), path.name, optimised=False)

    def close(self) -> None:
        """Frees the session."""
        self._session = None

    def _infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            logit, embedding = self._session.run([LOGIT_NAME, EMBEDDING_NAME], {INPUT_NAME: images})
        except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
            raise EngineLoadError(
                f"{self._path.name}: a batch of {len(images)} failed ({one_line(err, 200)})"
            ) from err
        return np.asarray(logit), np.asarray(embedding)
