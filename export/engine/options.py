"""What an engine build is asked for and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from export.precision import PrecisionPolicy
from runtime.errors import UsageError
from runtime.manifest import MAX_BATCH, PRECISIONS, EngineEntry


@dataclass(frozen=True)
class BuildOptions:
    """How to build one engine.

    Attributes:
        precision: "fp16" (give the FP16 graph) or "fp32" (give the FP32 graph).
        profiles: (min, opt, max) batch sizes, one per optimisation profile.
        targets: architectures as ``sm_<NN>``. Empty means: for tensorrt this machine's GPU, for
            tensorrt-rtx every architecture newer than Turing that the SDK knows.
        workspace_bytes: upper limit of scratch memory; None leaves it to the library.
        policy: what may be FP32 in an FP16 graph, and how much must be FP16.
        timing_cache: file that keeps kernel timings between builds; tensorrt only.
    """

    precision: str = "fp16"
    profiles: tuple[tuple[int, int, int], ...] = ((1, 8, 32),)
    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    policy: PrecisionPolicy = field(default_factory=PrecisionPolicy)
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision: found {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if not self.profiles:
            raise UsageError("batch sizes: found no profile, expected at least one (min, opt, max)")
        for least, best, most in self.profiles:
            if not 1 <= least <= best <= most <= MAX_BATCH:
                raise UsageError(
                    f"batch sizes: found min {least}, opt {best}, max {most}, "
                    f"expected 1 <= min <= opt <= max <= {MAX_BATCH}"
                )
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise UsageError(f"workspace: found {self.workspace_bytes} bytes, expected at least 1 MiB")


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file and the facts of its build.

    Attributes:
        path: where it was written.
        size: in bytes.
        backend: "tensorrt" or "tensorrt-rtx".
        version: four-part version of the library.
        precision: "fp16" or "fp32".
        profiles: (min, opt, max) batch sizes.
        targets: architectures, ``sm_<NN>``, ascending.
        fp16_share: FP16 share of the MatMul, Gemm and Conv outputs in the parsed network, those left out
            that the policy keeps FP32.
        weighted_layers: how many such layers the parsed network has, all of them.
        seconds: of the build itself.
        gpu: name of the GPU that it was built on, None without one.
        driver: CUDA version of the driver, None without one.
        runs_here: whether this machine opened it.
        reason: why it cannot be opened here; empty when it can.
    """

    path: Path
    size: int
    backend: str
    version: str
    precision: str
    profiles: tuple[tuple[int, int, int], ...]
    targets: tuple[str, ...]
    fp16_share: float
    weighted_layers: int
    seconds: float
    gpu: str | None
    driver: str | None
    runs_here: bool
    reason: str

    def entry(self, file: str, verified: str = "not-run") -> EngineEntry:
        """Returns what a manifest says of this engine when it lies at ``file`` inside a bundle."""
        return EngineEntry(
            file=file,
            backend=self.backend,
            precision=self.precision,
            profiles=self.profiles,
            targets=self.targets,
            version=self.version,
            gpu=self.gpu,
            driver=self.driver,
            verified=verified,
        )
