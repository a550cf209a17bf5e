"""Does this bundle, on this machine, give the logits that were stored when it was made?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.errors import ManifestError, SelfTestError
from runtime.golden import Golden
from runtime.manifest import Manifest
from runtime.tolerances import logit_tolerance

# How many golden rows the quick test reads.
QUICK_ROWS = 2


@dataclass(frozen=True)
class Check:
    """One comparison of logits: the largest |difference|, and the largest that is allowed."""

    name: str
    max_abs_logit: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance; a NaN is not."""
        return self.max_abs_logit <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Returns the form that ``selftest --json`` prints; a difference that is not finite becomes null."""
        finite = np.isfinite(self.max_abs_logit)
        return {
            "name": self.name,
            "passed": self.passed,
            "max_abs_logit": self.max_abs_logit if finite else None,
            "tolerance": self.tolerance,
        }


def manifest_tolerance(manifest: Manifest, precision: str) -> float:
    """Returns the tolerance on logits that the bundle was made with.

    Raises:
        ManifestError: the manifest states none for ``precision``.
    """
    try:
        return logit_tolerance(manifest.tolerances, precision)
    except KeyError as err:
        raise ManifestError(f"manifest.json: tolerances has no {err.args[0]}; rebuild the bundle") from err


def quick_self_test(backend: Backend, golden: Golden, tolerance: float) -> None:
    """Runs golden images 0 and 1 as one batch, then image 1 alone, and compares.

    Raises:
        SelfTestError: a logit is off, two rows of a batch are swapped, or a row depends on its batch.
        EngineLoadError: the engine failed.
    """
    rows = min(QUICK_ROWS, len(golden.images), backend.profile[2])
    logit, embedding = backend.run(golden.images[:rows])
    _check_row_order(embedding, golden.embedding[:rows])
    _require(_check("golden logits", logit, golden.logit[:rows], tolerance))
    alone, _ = backend.run(golden.images[rows - 1 : rows])
    _require(_check("batch law (a row alone equals the row in a batch)", alone, logit[rows - 1 :], tolerance))


def full_self_test(backend: Backend, golden: Golden, tolerance: float) -> list[Check]:
    """Runs every golden image at the batch sizes 1, 2, opt and max of the profile.

    Returns:
        One check against the stored logits per batch size.

    Raises:
        SelfTestError: rows of a batch are swapped.
        EngineLoadError: the engine failed.
    """
    _, best, most = backend.profile
    sizes = sorted({min(size, most, len(golden.images)) for size in (1, 2, best, most)})
    checks = []
    for size in sizes:
        logits = []
        for start in range(0, len(golden.images), size):
            logit, embedding = backend.run(golden.images[start : start + size])
            _check_row_order(embedding, golden.embedding[start : start + size])
            logits.append(logit)
        checks.append(_check(f"golden logits, batch {size}", np.concatenate(logits), golden.logit, tolerance))
    return checks


def _check(name: str, found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> Check:
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return Check(name, float(np.max(difference)), tolerance)


def _require(check: Check) -> None:
    if not check.passed:
        raise SelfTestError(
            f"self-test: {check.name}: found a difference of {check.max_abs_logit:.3g}, expected at most "
            f"{check.tolerance:.3g}; this engine does not compute what the bundle was made with: choose "
            "another --backend or rebuild it"
        )


def _check_row_order(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """No row may be far nearer to its neighbour's reference than to its own.

    Embeddings tell rows apart where logits happen to be equal, and need no tolerance: of swapped rows the
    distance to the neighbour's reference is rounding, and the other is not.
    """
    if len(found) < 2:
        return
    neighbour = np.roll(expected, 1, axis=0)
    own = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    other = np.linalg.norm(found.astype(np.float64) - neighbour, axis=1)
    if np.any(2.0 * other < own):
        raise SelfTestError(
            "self-test: row order: found rows of a batch that match their neighbour's reference, expected "
            "each to match its own; choose another --backend or rebuild the engine"
        )
