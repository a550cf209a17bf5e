"""The engines of a bundle: building them into it, opening those that run here, and saying which did not."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from export.bundle.build_figures import BuildFigures
from export.bundle.hashing import file_entry
from export.bundle.replacing import PlannedEngine
from export.bundle.writer import BundleWriter
from export.engine.builder import require_buildable
from export.engine.naming import engine_file_name
from export.engine.options import BuildOptions, BuiltEngine
from export.parity.forms.form import ENGINE, ONNX_FP32, Form, opened_form
from export.steps.engine import build_engine
from runtime.backends.base import Backend
from runtime.backends.onnx_session import import_onnxruntime
from runtime.backends.opening import BackendOptions, open_engine
from runtime.backends.selection import reason_against
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import ENGINES_FOLDER, MODEL_FP16_NAME, MODEL_NAME
from runtime.machine import cuda_device


@dataclass(frozen=True)
class StagedEngine:
    """An engine that is not in a bundle yet.

    Attributes:
        path: the engine, or the ONNX model that onnxruntime runs as it is.
        entry: what the manifest will say of it, but for whether it was verified.
        device: "cpu", "cuda", or the GPU's "sm_<NN>"; "" for a TensorRT engine without a GPU.
        facts: size, time and precision of the build, in words; "" where nothing was built.
        absent: why the build itself could not open it here; "" when it could or did not try.
        figures: time and memory of the build; None where nothing was built.
    """

    path: Path
    entry: EngineEntry
    device: str
    facts: str = ""
    absent: str = ""
    figures: BuildFigures | None = None

    @property
    def key(self) -> str:
        """Name of its hop in the chain of parity."""
        return f"{ENGINE} {self.entry.backend}" + (f":{self.device}" if self.device else "")

    def reason_not_to_run(self) -> str | None:
        """Returns why it cannot run on this machine, None when it can."""
        return self.absent or reason_against(self.entry, self.device, allow_host_code=True)

    def form(self, embed_dim: int, profile: tuple[int, int, int] | None, stack: ExitStack) -> Form:
        """Returns it as a form of the chain; one that cannot run here stands there with its reason.

        Args:
            embed_dim: width D of the embedding.
            profile: (min, opt, max) batch size for the batch laws.
            stack: closes what is opened.
        """
        title = self.key
        reason = self.reason_not_to_run()
        if reason:
            return Form(self.key, title, ONNX_FP32, self.entry.precision, None, reason, is_missing=True)

        def opened() -> Backend:
            return stack.enter_context(self.open(embed_dim))

        return opened_form(self.key, title, ONNX_FP32, self.entry.precision, opened, profile=profile)

    def open(self, embed_dim: int) -> Backend:
        """Opens it as the runtime would.

        Raises:
            MissingDependencyError: a package that it needs does not import.
            EngineLoadError: it cannot be loaded or breaks its contract.
        """
        # Only TensorRT-RTX asks for it, to name the kernels that it keeps.
        sha256 = "" if self.entry.backend == "onnxruntime" else file_entry(self.path).sha256
        return open_engine(
            self.path,
            self.entry,
            self.device,
            embed_dim=embed_dim,
            sha256=sha256,
            # It was built here, a moment ago.
            options=BackendOptions(allow_engine_host_code=True),
        )

    def state(self, found: str) -> str:
        """Returns in words what became of it; ``found`` says whether it was run."""
        return f"{found}; {self.facts}" if self.facts else f"{self.device}: {found}"


def planned_engines(backends: tuple[str, ...], options: BuildOptions) -> list[PlannedEngine]:
    """Returns the engine files that a build will make, or refuses it before any work is done.

    Raises:
        MissingDependencyError, UsageError, EngineBuildError: as ``require_buildable``.
    """
    planned = []
    for backend in (name for name in backends if name != "onnxruntime"):
        _trt, _gpu, targets = require_buildable(options, backend=backend)
        planned.append(PlannedEngine(backend, options.precision, targets, options.engine_profiles))
    return planned


def add_engines(writer: BundleWriter, backend: str, slug: str, options: BuildOptions) -> list[StagedEngine]:
    """Builds what one backend needs into a bundle that is being written.

    Args:
        writer: holds the FP32 and FP16 graphs.
        backend: "onnxruntime" needs no file; "tensorrt" and "tensorrt-rtx" get an engine.
        slug: of the model, for file names.
        options: precision, batch sizes, targets and limits.
    """
    if backend == "onnxruntime":
        return [_onnxruntime_engine(writer.path(MODEL_NAME), device, options) for device in ("cpu", "cuda")]
    graph = writer.path(graph_name(options))
    staged = writer.path(f"{ENGINES_FOLDER}/building.engine")
    built = build_engine(graph, staged, options, backend=backend)
    engine = staged_engine(built, slug)
    path = writer.path(engine.entry.file)
    staged.rename(path)
    return [replace(engine, path=path)]


def staged_engine(built: BuiltEngine, slug: str) -> StagedEngine:
    """Returns a built engine under the name that it will have inside a bundle."""
    file = engine_file_name(
        slug, built.precision, built.profiles[0], built.targets, built.backend, built.version
    )
    gpu = cuda_device()
    share = (
        f", {100 * built.fp16_share:.1f} % of weighted layers in FP16" if built.precision == "fp16" else ""
    )
    return StagedEngine(
        path=built.path,
        entry=built.entry(f"{ENGINES_FOLDER}/{file}"),
        device="" if gpu is None else gpu.target,
        facts=f"{built.size / 2**20:.1f} MiB in {built.seconds:.1f} s{share}",
        absent=built.reason,
        figures=BuildFigures(built.seconds, built.peak_bytes),
    )


def graph_name(options: BuildOptions) -> str:
    """Returns which of a bundle's graphs an engine is built from."""
    return MODEL_FP16_NAME if options.precision == "fp16" else MODEL_NAME


def _onnxruntime_engine(model: Path, device: str, options: BuildOptions) -> StagedEngine:
    entry = EngineEntry(
        file=MODEL_NAME,
        backend="onnxruntime",
        precision="fp32",
        profiles=options.profiles,
        targets=(device,),
        version=import_onnxruntime().__version__,
        gpu=None,
        driver=None,
        verified="not-run",
    )
    return StagedEngine(model, entry, device)
