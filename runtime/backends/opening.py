"""From a chosen line of the manifest to a running engine: the one place that knows every backend."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from runtime.backends.base import Backend
from runtime.backends.selection import BackendReport
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.opening import Bundle
from runtime.cache import cache_folder
from runtime.cuda.loading import CUDA_APIS, load_cuda
from runtime.errors import UsageError

logger = logging.getLogger("dgsnet.backends")

MOST_CONTEXTS = 64
RTX_KERNELS = ("eager", "lazy", "none")
_ENGINES = ("tensorrt", "tensorrt-rtx")
# Which backends an option acts on. A permission, such as allow_engine_host_code, may stand unused.
_ACTS_ON = {
    "threads": ("onnxruntime",),
    "cuda_api": _ENGINES,
    "cuda_graphs": _ENGINES,
    "zero_copy": _ENGINES,
    "contexts": _ENGINES,
    "rtx_kernels": ("tensorrt-rtx",),
}


@dataclass(frozen=True)
class BackendOptions:
    """How to run an engine. An option that would act on nothing is refused when the engine is opened.

    Attributes:
        threads: CPU threads inside one operator (onnxruntime); None leaves it to the engine.
        prepack: whether onnxruntime reorders the weights for the CPU at open; without, it opens for a few
            pictures: sooner, with longer runs, and leaving cores to others while its threads wait.
        cuda_api: binding that reaches CUDA for TensorRT, one of ``CUDA_APIS``.
        cuda_graphs: True demands CUDA graphs, False runs without, None takes them where they can be had and
            logs where they cannot.
        zero_copy: whether a GPU that shares the CPU's memory reads and writes the staging buffers in place.
        contexts: how many execution contexts, each with its own thread, serve callers of ``run``.
        allow_engine_host_code: whether plans may bring machine code for the CPU; trusted bundles only.
        cache_dir: the user's cache folder, None for the default.
        rtx_kernels: when TensorRT-RTX compiles kernels for a batch size: "eager", "lazy" or "none".

    Raises:
        UsageError: a value is outside its choices.
    """

    threads: int | None = None
    prepack: bool = True
    cuda_api: str = "cuda-python"
    cuda_graphs: bool | None = None
    zero_copy: bool = False
    contexts: int = 1
    allow_engine_host_code: bool = False
    cache_dir: str | os.PathLike[str] | None = None
    rtx_kernels: str = "eager"

    def __post_init__(self) -> None:
        for flag, found, choices in (
            ("cuda-api", self.cuda_api, CUDA_APIS),
            ("rtx-kernels", self.rtx_kernels, RTX_KERNELS),
        ):
            if found not in choices:
                raise UsageError(f"{flag}: found {found!r}, expected one of {', '.join(choices)}")
        if not 1 <= self.contexts <= MOST_CONTEXTS:
            raise UsageError(f"contexts: found {self.contexts}, expected 1 to {MOST_CONTEXTS}")


def open_backend(bundle: Bundle, report: BackendReport, options: BackendOptions) -> Backend:
    """Opens the engine that ``select_engine`` chose.

    Args:
        bundle: the opened bundle.
        report: what was chosen in it.
        options: how to run it.

    Raises:
        MissingDependencyError: a package that the backend needs does not import.
        EngineLoadError: the engine cannot be loaded or breaks its contract.
        UsageError: the options ask for what the backend or the machine does not have.
    """
    entry = report.entry
    return open_engine(
        bundle.file(entry.file),
        entry,
        report.device,
        embed_dim=bundle.manifest.embed_dim,
        sha256=bundle.manifest.files[entry.file].sha256,
        options=options,
    )


def open_engine(
    path: Path, entry: EngineEntry, device: str, *, embed_dim: int, sha256: str, options: BackendOptions
) -> Backend:
    """Opens an engine that may not be in a bundle yet; errors are those of ``open_backend``.

    Args:
        path: the engine, or the ONNX model for onnxruntime.
        entry: what a manifest says, or will say, of it.
        device: "cpu", "cuda" or "sm_<NN>".
        embed_dim: width D of the embedding.
        sha256: of the file; names its cached kernels.
        options: how to run it.
    """
    _refuse_idle_options(entry.backend, options)
    if entry.backend == "onnxruntime":
        return _open_onnxruntime(path, entry, device, embed_dim, options)
    return _open_tensorrt(path, entry, embed_dim, sha256, options)


def _refuse_idle_options(backend: str, options: BackendOptions) -> None:
    untouched = BackendOptions()
    for name, backends in _ACTS_ON.items():
        value = getattr(options, name)
        # To do without something that is not there anyway is no contradiction.
        if value and value != getattr(untouched, name) and backend not in backends:
            flag = name.replace("_", "-")
            raise UsageError(
                f"{flag}: found {value!r}, which {backend} does not have, expected an engine of "
                f"{' or '.join(backends)}; leave it out or choose another --backend"
            )


def _open_onnxruntime(
    path: Path, entry: EngineEntry, device: str, embed_dim: int, options: BackendOptions
) -> Backend:
    from runtime.backends.onnx_session import OnnxSession

    if not options.prepack:
        logger.debug("onnxruntime: weights are not prepacked, so it opens sooner and runs longer")
    return OnnxSession(
        path,
        device=device,
        embed_dim=embed_dim,
        profile=max(entry.profiles, key=lambda profile: profile[2]),
        threads=options.threads,
        prepack=options.prepack,
        # A session for a few pictures shares the cores with the hashing of the bundle, or with others.
        # Start-up benchmark, ViT-B/32, two cores: without spinning threads 0.1 to 0.3 s less CPU (of 1.2 s
        # with nothing to hash, of 1.9 s at first open); wall time alike on idle cores, less on busy ones.
        spin=options.prepack,
    )


def _open_tensorrt(
    path: Path, entry: EngineEntry, embed_dim: int, sha256: str, options: BackendOptions
) -> Backend:
    from runtime.backends.tensorrt.engine_host import EngineFile
    from runtime.backends.tensorrt.session import TensorRtSession

    file = EngineFile(
        path=path,
        entry=entry,
        embed_dim=embed_dim,
        sha256=sha256,
        cache=cache_folder(options.cache_dir),
        allow_host_code=options.allow_engine_host_code,
        rtx_kernels=options.rtx_kernels,
    )
    return TensorRtSession(
        file,
        load_cuda(options.cuda_api),
        contexts=options.contexts,
        cuda_graphs=options.cuda_graphs,
        zero_copy=options.zero_copy,
    )
