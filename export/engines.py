"""The engines of a bundle: building them into it, and saying what was run and what was not."""

from __future__ import annotations

from export.bundle.writer import BundleWriter
from export.engine.naming import engine_file_name
from export.engine.options import BuildOptions, BuiltEngine
from export.steps.engine import build_engine
from runtime.manifest import ENGINES_FOLDER, MODEL_FP16_NAME, MODEL_NAME, EngineEntry


def add_engines(
    writer: BundleWriter, backend: str, slug: str, options: BuildOptions
) -> list[tuple[EngineEntry, str]]:
    """Builds what one backend needs into a bundle that is being written.

    Args:
        writer: holds the FP32 and FP16 graphs, the FP32 one compared with its reference on the CPU.
        backend: "onnxruntime" needs no file; "tensorrt" and "tensorrt-rtx" get an engine.
        slug: of the model, for file names.
        options: precision, batch sizes, targets and limits.

    Returns:
        The manifest's entries, each with its state in words.
    """
    if backend == "onnxruntime":
        return [_onnxruntime_entry("cpu", options), _onnxruntime_entry("cuda", options)]
    graph = writer.path(graph_name(options))
    staged = writer.path(f"{ENGINES_FOLDER}/building.engine")
    built = build_engine(graph, staged, options, backend=backend)
    name = engine_name(slug, built)
    staged.rename(writer.path(name))
    return [(built.entry(name), state_of(built))]


def graph_name(options: BuildOptions) -> str:
    """Returns which of a bundle's graphs an engine is built from."""
    return MODEL_FP16_NAME if options.precision == "fp16" else MODEL_NAME


def engine_name(slug: str, built: BuiltEngine) -> str:
    """Returns where a built engine belongs inside a bundle."""
    file = engine_file_name(
        slug, built.precision, built.profiles[0], built.targets, built.backend, built.version
    )
    return f"{ENGINES_FOLDER}/{file}"


def state_of(built: BuiltEngine) -> str:
    """Returns in words whether an engine was run; only what ran is ever called verified."""
    reason = built.reason or "this version of the runtime runs onnxruntime only: built, not run"
    share = (
        f", {100 * built.fp16_share:.1f} % of weighted layers in FP16" if built.precision == "fp16" else ""
    )
    return f"{reason}; {built.size / 2**20:.1f} MiB in {built.seconds:.1f} s{share}"


def _onnxruntime_entry(device: str, options: BuildOptions) -> tuple[EngineEntry, str]:
    import onnxruntime

    # On the CPU the batch hops ran this very file with this very library, or the build has failed.
    ran = device == "cpu"
    entry = EngineEntry(
        file=MODEL_NAME,
        backend="onnxruntime",
        precision="fp32",
        profiles=options.profiles,
        targets=(device,),
        version=onnxruntime.__version__,
        gpu=None,
        driver=None,
        verified="passed" if ran else "not-run",
    )
    return entry, f"{device}: " + ("compared with the reference at every batch size" if ran else "not run")
