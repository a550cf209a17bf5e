"""The gate: the whole chain of a bundle, its checks, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.checkpoint import CheckpointSource
from export.parity.checks import (
    FAILED,
    ORIGIN,
    PASSED,
    SKIPPED,
    UNREADABLE_PICTURES,
    Check,
    Watched,
    file_checks,
    hop_checks,
    origin_check,
    overflow_check,
    required,
    unreadable_check,
)
from export.parity.forms.engines import open_engines
from export.parity.forms.form import (
    CHUNK,
    FILES,
    FP16,
    ONNX_FP32,
    Form,
    Graphs,
    Runnable,
    TorchForms,
    model_forms,
)
from export.parity.forms.form_checks import form_checks
from export.parity.outcome import GateReport, environment
from export.parity.pictures.feeding import Feed, FileFeed, GoldenFeed
from export.parity.pictures.from_files import FilesForm
from export.parity.pictures.reading import Reading
from export.parity.pictures.sampling import pictures_to_read
from export.parity.settings import GateLimits, gate_limits, settings_agreement, settings_differences
from export.parity.waterfall import COMPARED, run_waterfall
from runtime.bundle.golden import Golden, read_golden
from runtime.bundle.manifest import MODEL_FP16_NAME, MODEL_NAME, Manifest
from runtime.bundle.opening import open_bundle
from runtime.decision import Decision
from runtime.errors import MissingDependencyError
from runtime.spec import Preprocessing

SETTINGS = "settings"
AGREEMENT = "checkpoint -> manifest, decision, preprocessing and origin"
DEFAULT_BATCH = CHUNK
# Above this size of model.onnx, 100 million weights, a batch of every size would take longer than the chain.
_LARGE_BYTES = 400_000_000


@dataclass(frozen=True)
class GateOptions:
    """What a gate is asked for.

    Attributes:
        backends: engines by name, each of which must run; empty takes each one that runs here.
        batch: pictures at a time.
        command: the command line, for whoever wants to see the same again.
        reading: which files of a folder are taken and accepted.
        require_all: whether a form that cannot run here keeps the report from being a pass.
    """

    backends: tuple[str, ...] = ()
    batch: int = DEFAULT_BATCH
    command: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)
    require_all: bool = False


@dataclass(frozen=True)
class _Subject:
    """What the chain is run on, apart from the pictures."""

    forms: list[Form]
    files: list[FilesForm]
    graphs: Graphs
    decision: Decision
    limits: GateLimits
    golden: Golden
    golden_name: str
    every_size: bool


def bundle_gate(
    bundle: Path,
    checkpoint: CheckpointSource | None,
    data: Path | None,
    *,
    limits: dict[str, float | int | None] | None = None,
    options: GateOptions | None = None,
) -> GateReport:
    """Runs the gate of a finished bundle.

    Args:
        bundle: its folder.
        checkpoint: what it was made from; None begins the chain with its FP32 graph.
        data: folder of pictures; None takes the golden mosaics.
        limits: arguments of ``gate_limits``.
        options: None takes the defaults.

    Raises:
        MissingDependencyError: something asked for by name cannot run here, or nothing could be compared.
        ManifestError, CheckpointError, DataError, UsageError: bad input.
    """
    options = options or GateOptions()
    options.reading.require_data(has_data=data is not None)
    with ExitStack() as stack:
        opened = stack.enter_context(open_bundle(bundle))
        opened.join()
        manifest = opened.manifest
        allowed = gate_limits(manifest, **(limits or {}))  # type: ignore[arg-type]
        checks = [_settings_check(manifest, checkpoint)]
        feed_golden = read_golden(opened.file(manifest.golden_file), manifest.embed_dim)
        feed = _feed(data, checkpoint, feed_golden.images, options.reading)
        fp16 = opened.file(MODEL_FP16_NAME) if MODEL_FP16_NAME in manifest.files else None
        graphs = Graphs(opened.file(MODEL_NAME), fp16, manifest.embed_dim, _widest(manifest))
        # Engines first: a backend that was asked for by name and is absent ends the command at once.
        engines, files = open_engines(
            bundle,
            manifest,
            options.backends,
            stack,
            with_files=data is not None,
            limits=options.reading.limits,
        )
        forms = model_forms(checkpoint, graphs, stack)
        engines = _reparented(engines, forms)
        if data is None:
            no_files = Form(FILES, "from file bytes", ONNX_FP32, "fp32", None, "no --data", is_missing=True)
            engines.append(no_files)
        subject = _Subject(
            [*forms, *engines],
            files,
            graphs,
            manifest.decision,
            allowed,
            feed_golden,
            manifest.golden_reference,
            every_size=not _is_large(manifest),
        )
        return _report(subject, feed, checks, options, digest=manifest.digest)


def golden_gate(
    checkpoint: TorchForms | None,
    golden: Golden,
    graphs: Graphs,
    *,
    decision: Decision,
    reference_name: str,
    engines: Sequence[Form] = (),
    options: GateOptions | None = None,
) -> GateReport:
    """Runs the gate of a bundle that is being built, on its golden mosaics; nothing is read but the graphs.

    Args:
        checkpoint: what the bundle is made from; None for an ONNX file, whose chain begins with its graph.
        golden: the mosaics with the reference's outputs.
        graphs: the graphs in the folder that is being filled.
        decision: the rule that the bundle will carry.
        reference_name: "pytorch-fp32" or "onnx-fp32": who gave the golden outputs.
        engines: opened engines as forms, and those that cannot run here; ``engine_form`` makes one.
        options: None takes the defaults.

    Raises:
        MissingDependencyError: nothing could be compared.
    """
    options = options or GateOptions()
    with ExitStack() as stack:
        forms = model_forms(checkpoint, graphs, stack)
        subject = _Subject(
            [*forms, *_reparented(engines, forms)],
            [],
            graphs,
            decision,
            gate_limits(None),
            golden,
            reference_name,
            # What a build has to wait for; the parity command looks at every size.
            every_size=False,
        )
        return _report(subject, GoldenFeed(golden.images), [], options, digest=None)


def engine_form(name: str, precision: str, profile: tuple[int, int, int], backend: Runnable) -> Form:
    """Returns an opened engine as a form of the chain."""
    return Form(f"engine {name}", f"engine {name}", FP16, precision, backend, profile=profile)


def _reparented(engines: Sequence[Form], forms: Sequence[Form]) -> list[Form]:
    """An FP16 engine is compared with the emulation where that runs, anything else with the FP32 graph."""
    runs = {form.key for form in forms if form.runnable is not None}
    return [
        replace(form, parent=FP16 if form.precision == "fp16" and FP16 in runs else ONNX_FP32)
        for form in engines
    ]


def _report(
    subject: _Subject, feed: Feed, checks: list[Check], options: GateOptions, *, digest: str | None
) -> GateReport:
    waterfall = run_waterfall(
        feed,
        subject.forms,
        subject.files,
        decision=subject.decision,
        limits=subject.limits,
        batch=options.batch,
    )
    runnables = {form.key: form.runnable for form in subject.forms}
    extra = {files.key: files for files in subject.files}
    laws = {form.key: _laws(form, subject) for form in subject.forms}
    for hop in waterfall.hops:
        found = hop_checks(hop, subject.limits)
        checks += map(required, found) if options.require_all else found
        watched: object = runnables.get(hop.key)
        if hop.status == COMPARED and isinstance(watched, Watched):
            checks.append(overflow_check(hop.key, watched))
        if hop.key == FP16 and subject.graphs.fp16 is not None:
            checks.append(origin_check(hop.key, subject.graphs.fp32, subject.graphs.fp16))
        checks += laws.get(hop.key, [])
        if hop.key in extra:
            checks += file_checks(extra[hop.key])
    if isinstance(feed, FileFeed):
        checks.append(unreadable_check(feed.unreadable, feed.count, feed.reading.max_unreadable))
    # What the files alone tell is no comparison, but enough for a failure.
    beside = (AGREEMENT, ORIGIN, UNREADABLE_PICTURES)
    ran = [check for check in checks if check.status in (PASSED, FAILED) and check.name not in beside]
    if not ran and not any(check.status == FAILED for check in checks):
        reasons = "; ".join(dict.fromkeys(hop.reason for hop in waterfall.hops if hop.reason))
        raise MissingDependencyError(f"parity: nothing could be compared here ({reasons})")
    return GateReport(
        waterfall=waterfall,
        checks=tuple(checks),
        limits=subject.limits,
        decision=subject.decision,
        digest=digest,
        unreadable=tuple(feed.unreadable) if isinstance(feed, FileFeed) else (),
        borrowed=feed.borrowed if isinstance(feed, FileFeed) else 0,
        refused=tuple(entry for files in subject.files for entry in files.refused),
        environment=environment(),
        command=options.command,
        golden=feed.mosaics if isinstance(feed, GoldenFeed) else None,
        reading=options.reading,
        sample=feed.sample if isinstance(feed, FileFeed) else None,
    )


def _laws(form: Form, subject: _Subject) -> list[Check]:
    found = form_checks(
        form,
        subject.golden,
        subject.golden_name,
        decision=subject.decision,
        limits=subject.limits.of(form.precision),
        every=subject.every_size,
    )
    return list(found)


def _is_large(manifest: Manifest) -> bool:
    names = (MODEL_NAME, f"{MODEL_NAME}.data")
    return sum(manifest.files[name].size for name in names if name in manifest.files) > _LARGE_BYTES


def _settings_check(manifest: Manifest, checkpoint: CheckpointSource | None) -> Check:
    name = AGREEMENT
    if checkpoint is None:
        return Check(SETTINGS, name, SKIPPED, "no --checkpoint")
    differences = settings_differences(manifest, checkpoint)
    if differences:
        return Check(SETTINGS, name, FAILED, f"{'; '.join(differences)}; build the bundle again")
    return Check(SETTINGS, name, PASSED, settings_agreement(manifest, checkpoint))


def _feed(
    data: Path | None, checkpoint: CheckpointSource | None, golden: NDArray[np.uint8], reading: Reading
) -> Feed:
    if data is None:
        return GoldenFeed(golden)
    preprocessing = Preprocessing() if checkpoint is None else checkpoint.preprocessing
    pictures, sample = pictures_to_read(data, reading)
    return FileFeed(pictures, preprocessing, reading, sample)


def _widest(manifest: Manifest) -> tuple[int, int, int]:
    profiles = [profile for entry in manifest.engines for profile in entry.profiles]
    return max(profiles, key=lambda profile: profile[2]) if profiles else (1, 8, 32)
