"""An ONNX file that follows the graph contract, as a source of a bundle: no torch needed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.onnx_checks import check_contract, check_fp32
from export.onnx_files import external_files, load_model
from export.parity.batches import run_in_batches
from runtime.backends.onnx_session import OnnxSession
from runtime.decision import Decision


class OnnxSource:
    """A contract ONNX file; its own logits at batch 1 are the reference.

    Args:
        path: the file; weights may lie beside it.

    Raises:
        SpecError: the file does not follow the contract, or computes in FP16.
    """

    reference_name = "onnx-fp32"
    calibrated = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self.embed_dim = check_contract(path)
        check_fp32(path)
        self.decision = Decision()
        self.backbone: dict[str, Any] = {"name": path.stem}
        digest = hashlib.sha256(path.read_bytes())
        for name in external_files(load_model(path, weights=False)):
            digest.update((path.parent / name).read_bytes())
        self.sha256 = digest.hexdigest()

    def reference(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns ONNX Runtime's logits ``[N]`` and embeddings ``[N, D]``, one mosaic at a time."""
        with OnnxSession(self._path, device="cpu", embed_dim=self.embed_dim, profile=(1, 1, 1)) as session:
            return run_in_batches(session, images, 1)

    def onnx(self) -> Any:
        """Returns the model with its weights."""
        return load_model(self._path)
