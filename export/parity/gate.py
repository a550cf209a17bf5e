"""The parity of a finished bundle: reference against the runtime, on golden mosaics and on files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.checkpoint import CheckpointSource
from export.parity.batches import run_in_batches
from export.parity.compare import HopReport, compare_logits
from runtime.console import Progress
from runtime.decode import decode_image
from runtime.detector import Detector
from runtime.errors import DataError, ImageError
from runtime.golden import read_golden
from runtime.patches import select_patches
from runtime.scan import SUFFIXES

_CHUNK = 32


def golden_parity(
    detector: Detector, checkpoint: CheckpointSource | None, *, tolerance: float, max_hard_flips: int
) -> HopReport:
    """Compares the engine with the reference on the bundle's golden mosaics.

    Args:
        detector: the opened bundle.
        checkpoint: what the bundle was made from; None takes the logits stored in the bundle.
        tolerance: largest |difference of logits| that is allowed.
        max_hard_flips: changed verdicts that are allowed.
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
        boundary=manifest.decision.boundary_logit,
        tolerance=tolerance,
        max_hard_flips=max_hard_flips,
        embeddings=(reference[1], embeddings),
    )


def file_parity(
    detector: Detector, checkpoint: CheckpointSource, data: Path, *, tolerance: float, max_hard_flips: int
) -> HopReport:
    """Compares PyTorch with the runtime from the bytes of every picture below a folder.

    PyTorch gets the mosaic of the source's own permutation, the runtime the manifest's, so that a bundle
    with another permutation is caught.

    Raises:
        DataError: no picture, or one that cannot be read.
    """
    paths = sorted(p for p in data.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{data}: found no pictures below it, expected a folder of pictures")
    reference: list[NDArray[np.float32]] = []
    logits: list[float] = []
    with Progress("runtime from files", len(paths)) as progress:
        for chunk in _chunks(paths):
            for path, detection in zip(chunk, detector.predict(chunk), strict=True):
                if detection.logit is None:
                    raise DataError(f"{path}: no verdict ({detection.error}); remove the file or repair it")
                logits.append(detection.logit)
            progress.advance(len(chunk))
    with Progress("PyTorch from files", len(paths)) as progress:
        for chunk in _chunks(paths):
            reference.append(checkpoint.reference(np.stack([_mosaic(path) for path in chunk]))[0])
            progress.advance(len(chunk))
    return compare_logits(
        f"{checkpoint.reference_name} -> {detector.backend.name}, from file bytes",
        [path.relative_to(data).as_posix() for path in paths],
        np.concatenate(reference),
        np.array(logits, dtype=np.float32),
        boundary=detector.bundle.manifest.decision.boundary_logit,
        tolerance=tolerance,
        max_hard_flips=max_hard_flips,
    )


def _mosaic(path: Path) -> NDArray[np.uint8]:
    try:
        return select_patches(decode_image(path))
    except ImageError as err:
        raise DataError(f"{path}: {err}") from err


def _chunks(paths: list[Path]) -> Iterator[list[Path]]:
    for start in range(0, len(paths), _CHUNK):
        yield paths[start : start + _CHUNK]
