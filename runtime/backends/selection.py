"""Which of a bundle's engines runs on this machine, decided before any engine is loaded.

A candidate counts only if the manifest and the machine agree; every other one is rejected for exactly one
stated reason. Nothing here falls back: what is chosen either runs or is an error.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from runtime.backends.onnx_session import PROVIDERS, import_onnxruntime
from runtime.backends.tensorrt.compatibility import HOST_CODE_REASON, mismatch
from runtime.backends.tensorrt.module import MODULES, import_tensorrt
from runtime.bundle.engine_entry import BACKENDS, EngineEntry
from runtime.bundle.manifest import Manifest
from runtime.cuda.loading import missing_binding
from runtime.errors import MissingDependencyError, UsageError
from runtime.machine import cuda_device, installed_version

logger = logging.getLogger("dgsnet.selection")

DEVICES = ("cuda", "cpu")
_FAILED = "it failed its verification when it was built"
CHOICES = ("auto", *BACKENDS, *(f"onnxruntime:{device}" for device in DEVICES))

# The distributions that may have brought a backend's module.
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}


@dataclass(frozen=True)
class Rejection:
    """A candidate that was not taken, and the one reason."""

    candidate: str
    reason: str


@dataclass(frozen=True)
class BackendReport:
    """What was chosen and what was not.

    Attributes:
        entry: the chosen line of the manifest.
        name: backend and device, such as "onnxruntime:cpu".
        device: "cpu", "cuda" or "sm_<NN>".
        rejected: the candidates that came before the chosen one, in order, and why not.
    """

    entry: EngineEntry
    name: str
    device: str
    rejected: tuple[Rejection, ...]

    @property
    def engine(self) -> str:
        """Stem of the engine's file: what ``--engine`` takes."""
        return engine_stem(self.entry)

    def lines(self) -> list[str]:
        """Returns the report for a person, one fact a line."""
        chosen = f"backend {self.name}, engine {self.engine}, {self.entry.precision}"
        return [chosen, *(f"not {r.candidate}: {r.reason}" for r in self.rejected)]


def engine_stem(entry: EngineEntry) -> str:
    """Returns the name that picks an engine on a command line."""
    return PurePosixPath(entry.file).stem


def select_engine(
    manifest: Manifest,
    backend: str = "auto",
    *,
    engine: str | None = None,
    batch: int | None = None,
    cuda_api: str = "cuda-python",
    allow_engine_host_code: bool = False,
) -> BackendReport:
    """Chooses the engine that runs here.

    ``auto`` tries tensorrt, tensorrt-rtx, onnxruntime on CUDA, onnxruntime on the CPU, in this order; among
    engines of one backend the narrowest batch range that holds ``batch`` comes first, then the newest.

    Args:
        manifest: of the opened bundle.
        backend: one of ``CHOICES``.
        engine: stem of the one engine that may be taken.
        batch: batch size that will be asked for, None when any will do.
        cuda_api: binding that TensorRT will be run with.
        allow_engine_host_code: whether engines may bring machine code for the CPU.

    Raises:
        UsageError: an unknown backend or engine, or an engine of another backend.
        MissingDependencyError: nothing that was asked for can run on this machine.
    """
    if backend not in CHOICES:
        raise UsageError(f"backend: found {backend!r}, expected one of {', '.join(CHOICES)}")
    if engine is not None and engine not in {engine_stem(entry) for entry in manifest.engines}:
        known = ", ".join(sorted({engine_stem(entry) for entry in manifest.engines})) or "none"
        raise UsageError(f"engine: found {engine!r}, this bundle holds {known}")
    rejected: list[Rejection] = []
    fits = partial(_tensorrt_reason, cuda_api=cuda_api, allow_host_code=allow_engine_host_code)
    for candidate in _candidates(manifest, backend, engine, batch, fits):
        reason = candidate.reason()
        if reason is None and candidate.entry is not None:
            return BackendReport(candidate.entry, candidate.name, candidate.device, tuple(rejected))
        rejected.append(Rejection(candidate.label, reason or ""))
    if not rejected:
        raise UsageError(f"engine {engine!r} is not one of backend {backend!r}; drop one of the two")
    reasons = "; ".join(f"{r.candidate}: {r.reason}" for r in rejected)
    asked = f"backend {backend!r}" if engine is None else f"engine {engine!r}"
    flag = "--backend" if engine is None else "--engine"
    raise MissingDependencyError(f"{asked} cannot run here: {reasons}; choose another {flag}")


def reason_against(
    entry: EngineEntry, device: str, *, cuda_api: str = "cuda-python", allow_host_code: bool = False
) -> str | None:
    """Returns why an engine does not run on this machine, None when it should.

    Args:
        entry: what a manifest says of it.
        device: "cpu" or "cuda" for onnxruntime; others run on the GPU that there is.
        cuda_api: the CUDA binding for TensorRT.
        allow_host_code: whether plans may bring machine code for the CPU.
    """
    if entry.backend == "onnxruntime":
        return _onnxruntime_reason(entry, device)
    return _tensorrt_reason(entry, cuda_api=cuda_api, allow_host_code=allow_host_code)


@dataclass(frozen=True)
class _Candidate:
    label: str
    name: str
    device: str
    entry: EngineEntry | None
    reason: Callable[[], str | None]


def _candidates(
    manifest: Manifest,
    backend: str,
    engine: str | None,
    batch: int | None,
    tensorrt_reason: Callable[[EngineEntry], str | None],
) -> Iterator[_Candidate]:
    family, _, device = backend.partition(":")
    for name in BACKENDS if family == "auto" else (family,):
        entries = [e for e in manifest.engines if e.backend == name]
        if not entries and engine is None:
            yield _Candidate(name, name, "", None, lambda: "the bundle holds no engine for it")
        entries = [e for e in entries if engine in (None, engine_stem(e))]
        entries.sort(key=lambda entry: _preference(entry, batch))
        if name == "onnxruntime":
            for where in DEVICES if not device else (device,):
                # The same graph may be listed once for each device, with its own state of verification.
                for entry in [e for e in entries if where in e.targets] or entries:
                    full = f"{name}:{where}"
                    yield _Candidate(full, full, where, entry, partial(_onnxruntime_reason, entry, where))
        else:
            for entry in entries:
                gpu = cuda_device()
                where = gpu.target if gpu else ""
                label = f"{name} {engine_stem(entry)}"
                yield _Candidate(label, f"{name}:{where}", where, entry, partial(tensorrt_reason, entry))


def _preference(entry: EngineEntry, batch: int | None) -> tuple[bool, int, list[int]]:
    low = min(profile[0] for profile in entry.profiles)
    holds = batch is None or low <= batch <= entry.max_batch
    newest_first = [-int(part) if part.isdigit() else 0 for part in entry.version.split(".")]
    return not holds, entry.max_batch - low, newest_first


def _onnxruntime_reason(entry: EngineEntry, device: str) -> str | None:
    if entry.verified == "failed":
        return _FAILED
    if device not in entry.targets:
        return f"the bundle lists it for {', '.join(entry.targets)} only"
    if entry.precision != "fp32":
        return f"the bundle lists it as {entry.precision}, onnxruntime runs the fp32 graph only"
    if device == "cuda" and cuda_device() is None:
        return "no CUDA device"
    try:
        onnxruntime = import_onnxruntime()
    except MissingDependencyError as err:
        return str(err)
    _warn_of_shadowing(Path(onnxruntime.__file__).parent.parent)
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime has no {PROVIDERS[device]}"
    return None


def _tensorrt_reason(entry: EngineEntry, *, cuda_api: str, allow_host_code: bool) -> str | None:
    if entry.verified == "failed":
        return _FAILED
    # The last module of each way to import a backend is the one that is used.
    if all(importlib.util.find_spec(names[-1]) is None for names in MODULES[entry.backend]):
        return f"{MODULES[entry.backend][0][-1]} is not installed"
    device = cuda_device()
    if device is None:
        return "no CUDA device"
    installed = installed_version(*_DISTRIBUTIONS[entry.backend])
    reason = mismatch(entry, version=installed, gpu=device.name, target=device.target)
    if reason is None and entry.version_compatible and not allow_host_code:
        reason = HOST_CODE_REASON
    return reason or missing_binding(cuda_api) or _import_failure(entry.backend)


def _import_failure(backend: str) -> str | None:
    # Last, because it loads hundreds of megabytes: a module that is installed may still lack a library.
    try:
        import_tensorrt(backend)
    except MissingDependencyError as err:
        return str(err)
    return None


def _warn_of_shadowing(site: Path) -> None:
    # By the names of folders: to ask importlib would take longer than to look.
    if all(any(site.glob(f"{name}-*.dist-info")) for name in ("onnxruntime", "onnxruntime_gpu")):
        logger.warning(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "uninstall both, then install one"
        )
