"""A trained run as export sees it: reference logits in PyTorch, the merged FP32 ONNX graph, its decision.

The only module of this room that imports ``train``, and with it torch, which the record alone does without.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.graph.detector import OPSET, detector_graph
from export.graph.tower import tower_from_torch
from export.onnx_files import save_graph
from export.onnx_metadata import contract_metadata
from export.source import is_official
from runtime.decision import Decision
from runtime.errors import CheckpointError, MissingDependencyError, SpecError, UsageError
from runtime.spec import Preprocessing

_BATCH = 16


@dataclass(frozen=True)
class RecordedDecision:
    """What a run's record says of its decision.

    Attributes:
        decision: threshold, temperature and uncertain band.
        calibrated: whether threshold and temperature were fitted.
        weights_sha256: SHA-256 (hex) of the weights that it was fitted on.
    """

    decision: Decision
    calibrated: bool
    weights_sha256: str


def recorded_decision(run: Path) -> RecordedDecision:
    """Returns the decision in RUN/checkpoint.json; torch is not needed, and weights are not read.

    Raises:
        CheckpointError: the record is missing, damaged or of another version.
    """
    from train.record import RECORD_NAME, read_record

    record = read_record(run)
    try:
        decision = Decision.from_json(record["decision"])
        sha256 = record["weights_sha256"]
    except (KeyError, SpecError) as err:
        raise CheckpointError(f"{run / RECORD_NAME}: found no usable decision ({err}); train again") from err
    return RecordedDecision(decision, "calibration" in record, str(sha256))


class CheckpointSource:
    """A run's checkpoint, loaded in float32 on the CPU with its adapters unmerged.

    Args:
        run: the run's folder, or the authors' .pth, which is imported with the defaults of import-official.
        scratch: folder for what importing writes in between; None takes the system's.

    Raises:
        CheckpointError: the run is damaged, incomplete or of another architecture.
        UsageError: the file is one that import-official needs a flag for.
        MissingDependencyError: torch or open_clip is not installed.
    """

    reference_name = "pytorch-fp32"

    def __init__(self, run: Path, *, scratch: Path | None = None) -> None:
        try:
            from train.checkpoint import load_checkpoint
        except ImportError as err:
            raise MissingDependencyError(
                f'a checkpoint needs torch and open_clip ({err}); pip install "dgsnet[train]"'
            ) from err
        self._merged: Any = None
        if not is_official(run):
            self._checkpoint = load_checkpoint(run)
            return
        from train.official.importing import import_official

        with tempfile.TemporaryDirectory(prefix="dgsnet-import-", dir=scratch) as folder:
            try:
                import_official(run, Path(folder) / "run")
            except (CheckpointError, UsageError) as err:
                raise type(err)(f"{err} (flags are of python -m train import-official)") from err
            self._checkpoint = load_checkpoint(Path(folder) / "run")

    @property
    def decision(self) -> Decision:
        """The threshold and temperature that travel with the checkpoint."""
        return self._checkpoint.decision

    @property
    def calibrated(self) -> bool:
        """Whether threshold and temperature were fitted."""
        return "calibration" in self._checkpoint.record

    @property
    def backbone(self) -> dict[str, Any]:
        """What the manifest says of the backbone."""
        return dataclasses.asdict(self._checkpoint.backbone)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the checkpoint's weight file."""
        return self._checkpoint.weights_sha256

    @property
    def embed_dim(self) -> int:
        """Width D of the embedding."""
        return self._checkpoint.backbone.embed_dim

    @property
    def preprocessing(self) -> Preprocessing:
        """How the checkpoint's pictures became mosaics."""
        return Preprocessing.from_json(self._checkpoint.record["preprocessing"])

    @property
    def tower(self) -> Any:
        """The vision transformer in torch, adapters beside its weights: what ``reference`` runs."""
        return self._checkpoint.model.visual

    def reference(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns PyTorch's raw logits, float32 ``[N]``, and embeddings, float32 ``[N, D]``, unmerged.

        Args:
            images: mosaics, uint8 ``[N, 224, 224, 3]``.
        """
        return _forward(self._checkpoint.model, images)

    def merged_reference(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns what ``reference`` does, with the adapters merged into the weights.

        The merged copy shares every weight that merging leaves alone, and stays for the next call.
        """
        from train.model.lora import has_adapters, merge_lora

        if self._merged is None:
            model = self._checkpoint.model
            self._merged = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
            if has_adapters(self._merged.visual):  # the recipe "linear" has none
                merge_lora(self._merged.visual)
        return _forward(self._merged, images)

    def write_onnx(self, path: Path, *, opset: int = OPSET) -> int:
        """Writes the FP32 graph with the adapters merged and returns how many numbers its weights are.

        Weights go from the loaded model to the file; this object stays unmerged.

        Raises:
            SpecError: the tower has a part that the graph cannot express.
            CheckpointError: a weight is not finite.
            UsageError: an opset that is not written.
            OSError: the file cannot be written.
        """
        model = self._checkpoint.model
        head = model.head_image
        graph = detector_graph(
            tower_from_torch(model.visual),
            head.weight.detach().numpy(),
            head.bias.detach().numpy(),
            opset=opset,
        )
        parameters = graph.parameters
        save_graph(graph, path, metadata=contract_metadata(self.embed_dim, opset))
        return parameters


def _forward(model: Any, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import torch

    logits, embeddings = [], []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            logit, embedding = model(torch.from_numpy(np.array(images[start : start + _BATCH])))
            logits.append(logit.numpy())
            embeddings.append(embedding.numpy())
    return np.concatenate(logits), np.concatenate(embeddings)
