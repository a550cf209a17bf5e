"""The limits that a whole gate is held to, and whether bundle and checkpoint agree on what is only data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from export.bundle.set_decision import decision_set_by
from export.checkpoint import CheckpointSource
from export.parity.limits import bundle_limits, own_limits
from export.parity.statistics.compare import Limits
from runtime.bundle.manifest import Manifest
from runtime.errors import CheckpointError, UsageError
from runtime.tolerances import TOLERANCES

logger = logging.getLogger("dgsnet.export.parity")


@dataclass(frozen=True)
class GateLimits:
    """What a gate allows.

    Attributes:
        fp16: of a form that computes in FP16, against anything.
        fp32: of a form that computes in FP32, against another one that does.
        max_hard_flips: verdicts that may change although their margin exceeds the limit.
        max_ap_drop: how much average precision may fall.
        max_flip_bound: largest 95 % upper bound of the rate of flips; None does not gate it.
    """

    fp16: Limits
    fp32: Limits
    max_hard_flips: int = 0
    max_ap_drop: float = TOLERANCES["max_ap_drop"]
    max_flip_bound: float | None = None

    def of(self, precision: str) -> Limits:
        """Returns the limits of a precision."""
        return self.fp16 if precision == "fp16" else self.fp32

    def max_abs_logit(self, precision: str) -> float:
        """Returns the largest |difference of logits| of a precision."""
        return self.of(precision).max_abs_logit

    def to_json(self) -> dict[str, Any]:
        """Returns the form that parity.json stores."""
        return {
            "fp16": dict(vars(self.fp16)),
            "fp32": dict(vars(self.fp32)),
            "max_hard_flips": self.max_hard_flips,
            "max_ap_drop": self.max_ap_drop,
            "max_flip_bound": self.max_flip_bound,
        }


def gate_limits(
    manifest: Manifest | None,
    *,
    max_abs_logit: float | None = None,
    max_abs_logit_fp32: float | None = None,
    max_hard_flips: int = 0,
    max_ap_drop: float | None = None,
    max_flip_bound: float | None = None,
) -> GateLimits:
    """Returns the limits of a gate: what the caller allows, or this version's own, tightened by the manifest.

    ``max_abs_logit`` never loosens the comparison of two FP32 forms, which differ by rounding alone: a wrong
    epsilon would hide in FP16's tolerance. ``max_abs_logit_fp32`` does, for kernels that round more (TF32).

    Raises:
        UsageError: a number is out of its range.
    """
    for flag, value in (
        ("--max-abs-logit", max_abs_logit),
        ("--max-abs-logit-fp32", max_abs_logit_fp32),
        ("--max-ap-drop", max_ap_drop),
    ):
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"{flag}: found {value}, expected a number of at least 0")
    require_rate(max_flip_bound)
    if max_hard_flips < 0:
        raise UsageError(f"--max-hard-flips: found {max_hard_flips}, expected at least 0")
    fp32 = max_abs_logit_fp32
    if fp32 is None and max_abs_logit is not None:
        fp32 = min(max_abs_logit, own_limits("fp32").max_abs_logit)
    return GateLimits(
        fp16=bundle_limits(manifest, "fp16", max_abs_logit),
        fp32=bundle_limits(manifest, "fp32", fp32),
        max_hard_flips=max_hard_flips,
        max_ap_drop=TOLERANCES["max_ap_drop"] if max_ap_drop is None else max_ap_drop,
        max_flip_bound=max_flip_bound,
    )


def settings_differences(manifest: Manifest, checkpoint: CheckpointSource) -> list[str]:
    """Returns what differs between a bundle's data and its checkpoint's, one text each.

    Equal logits under another threshold are other verdicts, and another permutation is another picture. A
    decision that was set on the bundle on purpose is no difference, see ``settings_agreement``.

    Raises:
        CheckpointError: the checkpoint is of another architecture.
    """
    if checkpoint.embed_dim != manifest.embed_dim:
        raise CheckpointError(
            f"checkpoint: found an embedding of {checkpoint.embed_dim}, expected {manifest.embed_dim} as in "
            "the bundle; name the run that the bundle was built from"
        )
    differences = []
    if checkpoint.decision != manifest.decision and decision_set_by(manifest) is None:
        found, expected = manifest.decision.to_json(), checkpoint.decision.to_json()
        differences.append(f"decision {found}, the checkpoint's is {expected}")
    stated, trained = manifest.preprocessing.to_json(), checkpoint.preprocessing.to_json()
    for key in trained:
        if stated[key] != trained[key]:
            differences.append(f"preprocessing.{key} {stated[key]}, the checkpoint's is {trained[key]}")
    made_from = manifest.raw["provenance"].get("source_sha256")
    if manifest.golden_reference == checkpoint.reference_name and made_from != checkpoint.sha256:
        differences.append("built from other weights than the checkpoint's")
    return differences


def require_rate(max_flip_bound: float | None) -> None:
    """Refuses what is no bound of a rate; None, which gates nothing, is good.

    Raises:
        UsageError: it is not above 0 and at most 1.
    """
    if max_flip_bound is not None and not 0 < max_flip_bound <= 1:
        raise UsageError(f"--max-flip-bound: found {max_flip_bound}, expected a rate above 0 and at most 1")


def settings_agreement(manifest: Manifest, checkpoint: CheckpointSource) -> str:
    """Returns how settings without ``settings_differences`` agree, and warns of a decision that was set."""
    command = decision_set_by(manifest)
    if command is None or checkpoint.decision == manifest.decision:
        return "the same"
    found, expected = manifest.decision.to_json(), checkpoint.decision.to_json()
    note = f"decision {found} was set on the bundle by {command}, the checkpoint's is {expected}"
    logger.warning("note: %s", note)
    return f"the same, but for one on purpose: {note}"
