"""One comparison of a self-test: what was found, what is allowed, and how both are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.manifest import Manifest
from runtime.errors import ManifestError, SelfTestError
from runtime.tolerances import TOLERANCES, logit_tolerance

# How far away another row's reference is looked for. A batch repeats the golden images, 16 by default, and in
# a reversed one the rows of the middle are close to where they should be.
_NEIGHBOURS = 33


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: the law, and the batch size that it was tried at.
        max_abs_logit: the largest |difference of logits|.
        tolerance: the largest that is allowed.
        rows_in_order: whether the embeddings say that every row is its own picture's.
    """

    name: str
    max_abs_logit: float
    tolerance: float
    rows_in_order: bool = True

    @property
    def passed(self) -> bool:
        """Whether the rows are in order and the difference within the tolerance; a NaN is not."""
        return self.rows_in_order and self.max_abs_logit <= self.tolerance

    def line(self) -> str:
        """Returns the outcome for a person."""
        order = "" if self.rows_in_order else ", rows out of order"
        return (
            f"{self.name}: max |difference of logits| {self.max_abs_logit:.3g}, "
            f"allowed {self.tolerance:.3g}{order}"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that ``selftest --json`` prints; a difference that is not finite becomes null."""
        return {
            "name": self.name,
            "passed": self.passed,
            "max_abs_logit": self.max_abs_logit if np.isfinite(self.max_abs_logit) else None,
            "tolerance": self.tolerance,
            "rows_in_order": self.rows_in_order,
        }


def compared(
    name: str,
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
    tolerance: float,
    *,
    rows_in_order: bool = True,
) -> Check:
    """Returns the check of logits ``[n]`` against logits ``[n]`` or one that all must equal ``[1]``."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which fails
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return Check(name, float(np.max(difference)), tolerance, rows_in_order)


def are_rows_in_order(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Says whether no row is far nearer to another row's reference than to its own.

    Embeddings tell rows apart where logits happen to be equal, and need no tolerance: of swapped rows the
    distance to the other's reference is rounding, and that to their own is not.

    Args:
        found: embeddings float32 ``[n, D]``.
        expected: the reference of each row, float32 ``[n, D]``.
    """
    exact, reference = found.astype(np.float64), expected.astype(np.float64)
    own = np.linalg.norm(exact - reference, axis=1)
    for shift in range(1, min(len(found), _NEIGHBOURS)):
        other = np.linalg.norm(exact - np.roll(reference, shift, axis=0), axis=1)
        if np.any(2.0 * other < own):
            return False
    return True


def require(check: Check) -> None:
    """Refuses to serve on a failed check.

    Raises:
        SelfTestError: it failed; the message names it.
    """
    if check.passed:
        return
    if not check.rows_in_order:
        raise SelfTestError(
            f"self-test: row order ({check.name}): found rows of a batch that match another row's reference, "
            "expected each to match its own; choose another --backend or rebuild the engine"
        )
    raise SelfTestError(
        f"self-test: {check.name}: found a difference of {check.max_abs_logit:.3g}, expected at most "
        f"{check.tolerance:.3g}; this engine does not compute what the bundle was made with: choose "
        "another --backend or rebuild it"
    )


def manifest_tolerance(manifest: Manifest, precision: str) -> float:
    """Returns the tolerance on logits: the stricter of the bundle's and this version's.

    Raises:
        ManifestError: the manifest states none for ``precision``.
    """
    try:
        stated = logit_tolerance(manifest.tolerances, precision)
    except KeyError as err:
        raise ManifestError(f"manifest.json: tolerances has no {err.args[0]}; rebuild the bundle") from err
    return min(stated, logit_tolerance(TOLERANCES, precision))
