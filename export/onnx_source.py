"""An ONNX file that follows the graph contract, as a source of a bundle: no torch needed."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.onnx_checks import (
    check_batch_is_free,
    check_contract,
    check_plain_fp32,
    check_structure,
    opset_version,
)
from export.onnx_files import check_finite, external_files, load_model, save_model
from export.onnx_metadata import contract_metadata
from export.parity.forms.form import run_in_chunks
from runtime.backends.onnx_session import OnnxSession
from runtime.decision import Decision
from runtime.errors import EngineLoadError, SpecError

_BLOCK_BYTES = 1 << 20
# A batch frozen inside is right at one size only.
_TRIED_BATCHES = (1, 2, 3)


class OnnxSource:
    """A contract ONNX file; its own logits at batch 1 are the reference.

    Args:
        path: the file; weights may lie beside it.

    Raises:
        SpecError: the file does not follow the contract, is not valid, or does not compute in FP32.
    """

    reference_name = "onnx-fp32"
    calibrated = False

    def __init__(self, path: Path) -> None:
        self._path = path
        graph = load_model(path, weights=False)
        self.embed_dim = check_contract(graph)
        check_plain_fp32(graph, path.name)
        check_structure(path)
        check_batch_is_free(graph, path.name)
        self.decision = Decision()
        self.backbone: dict[str, Any] = {"name": path.stem}
        self.sha256 = _sha256([path, *(path.parent / name for name in external_files(graph))])

    def reference(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns ONNX Runtime's logits ``[N]`` and embeddings ``[N, D]``, one mosaic at a time.

        Raises:
            SpecError: the graph does not run at every batch size.
            EngineLoadError: ONNX Runtime cannot open it.
        """
        most = max(_TRIED_BATCHES)
        with OnnxSession(self._path, device="cpu", embed_dim=self.embed_dim, profile=(1, 1, most)) as session:
            for size in _TRIED_BATCHES:
                try:
                    session.run(images[np.arange(size) % len(images)])
                except EngineLoadError as err:
                    raise SpecError(
                        f"{self._path.name}: found no result at batch {size}, expected one at every batch; "
                        f"export it with a dynamic batch and two example pictures ({err})"
                    ) from err
            return run_in_chunks(session, images, 1)

    def write_onnx(self, path: Path) -> int:
        """Writes the model with our metadata for its exporter's; returns how many numbers its weights are.

        Raises:
            SpecError: a weight is not finite.
            OSError: the file cannot be written.
        """
        model = load_model(self._path)
        for tensor in model.graph.initializer:
            check_finite(tensor, self._path.name)
        save_model(model, path, metadata=contract_metadata(self.embed_dim, opset_version(model)))
        return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
