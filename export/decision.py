"""Another decision for a bundle that is there: where it comes from, and what it changes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle.hashing import file_entry
from export.bundle.set_decision import set_decision
from export.checkpoint import RecordedDecision, recorded_decision
from runtime.bundle.golden import Golden, read_golden
from runtime.bundle.manifest import PARITY_FOLDER, Manifest
from runtime.bundle.opening import Bundle, open_bundle
from runtime.decision import Decision
from runtime.errors import ManifestError, UsageError

_PYTORCH = "pytorch-fp32"


@dataclass(frozen=True)
class DecisionFlags:
    """What is asked for; None and "" mean as it is.

    Attributes:
        threshold: probability in (0, 1).
        temperature: positive.
        uncertain: half-open band of probabilities; equal ends mean none.
        run: folder of the run whose decision is taken; the other three change that one.
    """

    threshold: float | None = None
    temperature: float | None = None
    uncertain: tuple[float, float] | None = None
    run: Path | None = None

    def changed(self, decision: Decision) -> Decision:
        """Returns a decision with what was given in place.

        Raises:
            SpecError: a number is out of its range.
        """
        given = {"threshold": self.threshold, "temperature": self.temperature, "uncertain": self.uncertain}
        return replace(decision, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def command(self) -> tuple[str, ...]:
        """Returns the options for the provenance; the run stands there without its path."""
        words = ["set-decision"]
        words += [] if self.run is None else ["--from", "RUN"]
        words += [] if self.threshold is None else ["--threshold", repr(self.threshold)]
        words += [] if self.temperature is None else ["--temperature", repr(self.temperature)]
        words += [] if self.uncertain is None else ["--uncertain", ",".join(map(repr, self.uncertain))]
        return tuple(words)


@dataclass(frozen=True)
class Verdicts:
    """What a decision makes of the golden mosaics.

    Attributes:
        generated: for each mosaic, whether it is called generated.
        uncertain: for each, whether a person should look at it.
    """

    generated: tuple[bool, ...]
    uncertain: tuple[bool, ...]

    def line(self) -> str:
        """Returns the counts in words."""
        count = sum(self.generated)
        return f"{len(self.generated) - count} real, {count} generated, {sum(self.uncertain)} uncertain"

    def to_json(self) -> dict[str, int]:
        """Returns the counts."""
        count = sum(self.generated)
        return {
            "real": len(self.generated) - count,
            "generated": count,
            "uncertain": sum(self.uncertain),
        }


@dataclass(frozen=True)
class DecisionChange:
    """A decision that was replaced.

    Attributes:
        before: the old decision.
        after: the new one.
        verdicts: on the golden mosaics, by the old and the new one.
        digest: of the manifest now in force.
        is_written: whether anything was; an equal decision leaves the bundle as it is.
        has_reports: whether parity/ holds reports, which speak of an older decision.
        is_origin_known: whether the weights of the run were compared with those of the bundle.
        is_run_calibrated: whether the run, if one was named, holds a decision that was fitted.
    """

    before: Decision
    after: Decision
    verdicts: tuple[Verdicts, Verdicts]
    digest: str
    is_written: bool
    has_reports: bool
    is_origin_known: bool
    is_run_calibrated: bool

    @property
    def changed(self) -> list[int]:
        """Golden mosaics, by their index, whose label or uncertainty is another."""
        old, new = (zip(v.generated, v.uncertain, strict=True) for v in self.verdicts)
        return [index for index, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]

    def to_json(self) -> dict[str, Any]:
        """Returns the form that ``set-decision --json`` prints."""
        return {
            "schema": 1,
            "digest": self.digest,
            "written": self.is_written,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "golden": {
                "count": len(self.verdicts[0].generated),
                "before": self.verdicts[0].to_json(),
                "after": self.verdicts[1].to_json(),
                "changed": self.changed,
            },
            "reports_are_older": self.is_written and self.has_reports,
        }


def change_decision(bundle: Path, flags: DecisionFlags) -> DecisionChange:
    """Gives a bundle another decision; its graphs and engines stay, the manifest is replaced in one step.

    Args:
        bundle: its folder.
        flags: what to change.

    Raises:
        UsageError: nothing is asked for, the run holds other weights than the bundle was built from, or the
            bundle cannot be written.
        SpecError: a number is out of its range.
        CheckpointError: the run's record is missing or damaged.
        ManifestError: the bundle is damaged.
    """
    if flags == DecisionFlags():
        raise UsageError("found nothing to set, expected --threshold, --temperature, --uncertain or --from")
    run = None if flags.run is None else recorded_decision(flags.run)
    with open_bundle(bundle, verify="off") as opened:
        manifest, golden = opened.manifest, _golden(opened)
        reports = opened.path / PARITY_FOLDER
        has_reports = reports.is_dir() and any(reports.glob("*.*"))
    if run is not None and manifest.golden_reference == _PYTORCH:
        _require_same_weights(manifest, run, flags)
    before = manifest.decision
    after = flags.changed(before if run is None else run.decision)
    calibrated = _is_calibrated(manifest, run, after)
    is_written = after != before
    if is_written:
        manifest = set_decision(
            bundle,
            after,
            digest=manifest.digest,
            command=flags.command(),
            calibrated=calibrated,
            source_sha256=None if run is None else run.weights_sha256,
        )
    return DecisionChange(
        before=before,
        after=after,
        verdicts=(_verdicts(before, golden.logit.tolist()), _verdicts(after, golden.logit.tolist())),
        digest=manifest.digest,
        is_written=is_written,
        has_reports=has_reports,
        is_origin_known=run is None or manifest.golden_reference == _PYTORCH,
        is_run_calibrated=run is None or run.calibrated,
    )


def _golden(opened: Bundle) -> Golden:
    name = opened.manifest.golden_file
    if file_entry(opened.file(name)) != opened.manifest.files[name]:
        raise ManifestError(f"{opened.path / name}: differs from the manifest; get the bundle again")
    return read_golden(opened.file(name), opened.manifest.embed_dim)


def _require_same_weights(manifest: Manifest, run: RecordedDecision, flags: DecisionFlags) -> None:
    made_from = manifest.raw["provenance"].get("source_sha256")
    if made_from != run.weights_sha256:
        raise UsageError(
            f"--from {flags.run}: found weights {run.weights_sha256[:12]}..., the bundle was built from "
            f"{str(made_from)[:12]}...; name the run of the bundle, or give --threshold and --temperature"
        )


def _is_calibrated(manifest: Manifest, run: RecordedDecision | None, after: Decision) -> bool:
    """Whether threshold and temperature, which calibration fits, are both as somebody fitted them."""
    fitted = []
    if manifest.raw["provenance"].get("calibrated") is True:
        fitted.append(manifest.decision)
    if run is not None and run.calibrated:
        fitted.append(run.decision)
    return any((d.threshold, d.temperature) == (after.threshold, after.temperature) for d in fitted)


def _verdicts(decision: Decision, logits: Sequence[float]) -> Verdicts:
    judged = [decision.judge(logit) for logit in logits]
    return Verdicts(
        tuple(bool(flag) for flag in decision.is_generated(np.asarray(logits))),
        tuple(verdict.uncertain for verdict in judged),
    )
