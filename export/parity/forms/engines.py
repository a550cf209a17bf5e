"""The engines of a bundle that run here, opened as the runtime opens them, and the runtime from files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from export.parity.forms.form import ENGINE, FILES, ONNX_FP32, Form
from export.parity.pictures.from_files import FilesForm
from runtime.backends.selection import DEVICES
from runtime.bundle.manifest import Manifest
from runtime.decode import DecodeLimits
from runtime.detector import Detector
from runtime.errors import DgsNetError, ManifestError, MissingDependencyError, UsageError


def backends_in(manifest: Manifest) -> list[str]:
    """Returns every backend and device that a bundle holds an engine for, in the order of selection."""
    found: list[str] = []
    for entry in manifest.engines:
        if entry.backend == "onnxruntime":
            found += [f"onnxruntime:{device}" for device in DEVICES if device in entry.targets]
        else:
            found.append(entry.backend)
    order = {"tensorrt": 0, "tensorrt-rtx": 1, "onnxruntime:cuda": 2, "onnxruntime:cpu": 3}
    return sorted(set(found), key=lambda name: order.get(name, len(order)))


def open_engines(
    bundle: Path,
    manifest: Manifest,
    asked: Sequence[str],
    stack: ExitStack,
    *,
    with_files: bool,
    limits: DecodeLimits | None = None,
) -> tuple[list[Form], list[FilesForm]]:
    """Opens an engine per backend through the runtime's own selection.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        asked: backends by name, each of which must run; empty takes each one that runs here, and reports the
            others as skipped.
        stack: closes what is opened.
        with_files: whether the runtime from file bytes is asked for too.
        limits: which files it accepts; None for the default ones.

    Raises:
        MissingDependencyError: a backend asked for by name cannot run here.
        UsageError: a backend asked for by name is unknown.
        ManifestError: the bundle is damaged.
    """
    limits = limits or DecodeLimits()
    forms: list[Form] = []
    files: list[FilesForm] = []
    for backend in asked or backends_in(manifest):
        try:
            # The self-test would refuse a drifting engine with less to say about it than this report has.
            detector = stack.enter_context(Detector.open(bundle, backend, selftest=False, **vars(limits)))
        except (UsageError, ManifestError):
            raise
        except MissingDependencyError as err:
            if asked:
                raise
            forms.append(_closed(backend, manifest, str(err), is_missing=True))
            continue
        except DgsNetError as err:
            forms.append(_closed(backend, manifest, str(err), is_missing=False))
            continue
        entry = detector.backend_report.entry
        name = detector.backend.name
        key = f"{ENGINE} {name}"
        profile = max(entry.profiles, key=lambda profile: profile[2])
        forms.append(
            Form(key, f"engine {name}", ONNX_FP32, entry.precision, detector.backend, profile=profile)
        )
        if with_files:
            # What the engine itself does with a mosaic is the same here: only preprocessing and batching add.
            files.append(FilesForm(f"{FILES} {name}", key, entry.precision, detector, limits))
    return forms, files


def _closed(backend: str, manifest: Manifest, reason: str, *, is_missing: bool) -> Form:
    family = backend.partition(":")[0]
    precisions = {entry.precision for entry in manifest.engines if entry.backend == family}
    precision = "fp16" if "fp16" in precisions else "fp32"
    return Form(
        f"{ENGINE} {backend}", f"engine {backend}", ONNX_FP32, precision, None, reason, is_missing=is_missing
    )
