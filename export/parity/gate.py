"""The parity of a finished bundle: reference against the runtime, on golden mosaics and on files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.checkpoint import CheckpointSource
from export.parity.batches import run_in_batches
from export.parity.compare import HopReport, Limits, compare_logits
from runtime.console import Progress
from runtime.detector import Detector
from runtime.errors import CheckpointError, DataError
from runtime.golden import read_golden
from runtime.manifest import Manifest
from runtime.pictures import mosaic_from_file, picture_files

_CHUNK = 32


@dataclass(frozen=True)
class SettingsReport:
    """Whether the bundle judges by the rule of its checkpoint, and was made from it.

    Attributes:
        hop: what was compared.
        differences: one text per setting that differs; empty when none does.
    """

    hop: str
    differences: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def line(self) -> str:
        """Returns the check as one line for a person."""
        if self.passed:
            return f"passed  {self.hop}: the same"
        return f"FAILED  {self.hop}: {'; '.join(self.differences)}; build the bundle again"

    def to_json(self) -> dict[str, Any]:
        """Returns the form that parity.json stores."""
        return {
            "hop": self.hop,
            "status": "passed" if self.passed else "failed",
            "differences": list(self.differences),
        }


def settings_parity(manifest: Manifest, checkpoint: CheckpointSource) -> SettingsReport:
    """Compares decision and origin: equal logits under another threshold are other verdicts.

    Raises:
        CheckpointError: the checkpoint is of another architecture.
    """
    if checkpoint.embed_dim != manifest.embed_dim:
        raise CheckpointError(
            f"checkpoint: found an embedding of {checkpoint.embed_dim}, expected {manifest.embed_dim} as in "
            "the bundle; name the run that the bundle was built from"
        )
    differences = []
    if checkpoint.decision != manifest.decision:
        found, expected = manifest.decision.to_json(), checkpoint.decision.to_json()
        differences.append(f"decision {found}, the checkpoint's is {expected}")
    made_from = manifest.raw["provenance"].get("source_sha256")
    if manifest.golden_reference == checkpoint.reference_name and made_from != checkpoint.sha256:
        differences.append("built from other weights than the checkpoint's")
    return SettingsReport("checkpoint -> manifest, decision and origin", tuple(differences))


def golden_parity(detector: Detector, checkpoint: CheckpointSource | None, *, limits: Limits) -> HopReport:
    """Compares the engine with the reference on the bundle's golden mosaics.

    Args:
        detector: the opened bundle.
        checkpoint: what the bundle was made from; None takes the logits stored in the bundle.
        limits: what is allowed.
    """
    manifest = detector.bundle.manifest
    golden = read_golden(detector.bundle.file(manifest.golden_file), manifest.embed_dim)
    if checkpoint is None:
        name, reference = f"stored {manifest.golden_reference}", (golden.logit, golden.embedding)
    else:
        name, reference = checkpoint.reference_name, checkpoint.reference(golden.images)
    logits, embeddings = run_in_batches(detector.backend, golden.images, detector.batch_size)
    return compare_logits(
        f"{name} -> {detector.backend.name}, golden mosaics",
        [f"golden {k}" for k in range(len(logits))],
        reference[0],
        logits,
        decision=manifest.decision,
        limits=limits,
        embeddings=(reference[1], embeddings),
    )


def file_parity(detector: Detector, checkpoint: CheckpointSource, data: Path, *, limits: Limits) -> HopReport:
    """Compares PyTorch with the runtime from the bytes of every picture below a folder.

    PyTorch gets the mosaic of the source's own permutation, the runtime the manifest's, so that a bundle
    with another permutation is caught.

    Raises:
        DataError: no picture, or one that cannot be read.
    """
    paths = picture_files(data)
    if not paths:
        raise DataError(f"{data}: found no pictures below it, expected a folder of pictures")
    reference: list[NDArray[np.float32]] = []
    logits: list[float] = []
    with Progress("runtime from files", len(paths)) as progress:
        for chunk in _chunks(paths):
            for path, detection in zip(chunk, detector.predict(chunk), strict=True):
                if detection.logit is None:
                    reason = detection.error.message if detection.error else "no reason given"
                    raise DataError(f"{path}: no verdict ({reason}); remove the file or repair it")
                logits.append(detection.logit)
            progress.advance(len(chunk))
    with Progress("PyTorch from files", len(paths)) as progress:
        for chunk in _chunks(paths):
            # The runtime has judged every one of these files, so each of them can be read.
            reference.append(checkpoint.reference(np.stack([mosaic_from_file(path) for path in chunk]))[0])
            progress.advance(len(chunk))
    return compare_logits(
        f"{checkpoint.reference_name} -> {detector.backend.name}, from file bytes",
        [path.relative_to(data).as_posix() for path in paths],
        np.concatenate(reference),
        np.array(logits, dtype=np.float32),
        decision=detector.bundle.manifest.decision,
        limits=limits,
    )


def _chunks(paths: list[Path]) -> Iterator[list[Path]]:
    for start in range(0, len(paths), _CHUNK):
        yield paths[start : start + _CHUNK]
