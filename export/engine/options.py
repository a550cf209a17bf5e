"""What an engine build is asked for and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from export.precision.policy import PrecisionPolicy
from runtime.bundle.engine_entry import HARDWARE_LEVELS, MAX_BATCH, PRECISIONS, EngineEntry
from runtime.errors import UsageError

BATCH_1_PROFILE = (1, 1, 1)
HIGHEST_OPTIMIZATION_LEVEL = 5
NO_HARDWARE_LEVEL = "none"


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
        batch_1_profile: adds a profile for single images to one range that starts at 1.
        timing_cache: file that keeps kernel timings between builds, tensorrt only; None takes the one of
            this GPU and TensorRT in the user's cache folder.
        use_timing_cache: False keeps no timings.
        version_compatible: later versions of TensorRT can run the engine; tensorrt only.
        hardware_compatible: "none" or one of ``HARDWARE_LEVELS``; tensorrt only.
        optimization_level: 0 (fastest build) to 5 (fastest engine); None leaves it to the library.
    """

    precision: str = "fp16"
    profiles: tuple[tuple[int, int, int], ...] = ((1, 8, 32),)
    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    policy: PrecisionPolicy = field(default_factory=PrecisionPolicy)
    batch_1_profile: bool = True
    timing_cache: Path | None = None
    use_timing_cache: bool = True
    version_compatible: bool = False
    hardware_compatible: str = NO_HARDWARE_LEVEL
    optimization_level: int | None = None

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
        if self.timing_cache is not None and not self.use_timing_cache:
            raise UsageError("timing cache: found a file and a wish for none; give one of the two")
        levels = (NO_HARDWARE_LEVEL, *HARDWARE_LEVELS)
        if self.hardware_compatible not in levels:
            raise UsageError(
                f"hardware compatibility: found {self.hardware_compatible!r}, expected one of "
                f"{', '.join(levels)}"
            )
        level = self.optimization_level
        if level is not None and not 0 <= level <= HIGHEST_OPTIMIZATION_LEVEL:
            raise UsageError(f"optimization level: found {level}, expected 0 to {HIGHEST_OPTIMIZATION_LEVEL}")

    @property
    def engine_profiles(self) -> tuple[tuple[int, int, int], ...]:
        """The profiles of an engine file, in its order: the range first, the one for single images last.

        A range that starts above 1 gets none: the engine would then run 1 and not 2, and what chooses
        between engines reads the sizes in between as held.
        """
        if not self.batch_1_profile or len(self.profiles) > 1 or self.profiles[0][0] > 1:
            return self.profiles
        return self.profiles if self.profiles[0] == BATCH_1_PROFILE else (*self.profiles, BATCH_1_PROFILE)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file and the facts of its build.

    Attributes:
        path: where it was written.
        size: in bytes.
        backend: "tensorrt" or "tensorrt-rtx".
        version: four-part version of the library.
        precision: "fp16" or "fp32".
        profiles: (min, opt, max) batch sizes, in the engine's order.
        targets: architectures, ``sm_<NN>``, ascending.
        fp16_share: FP16 share of the MatMul, Gemm and Conv outputs in the parsed network, those left out
            that the policy keeps FP32.
        weighted_layers: how many such layers the parsed network has, all of them.
        seconds: of the build itself.
        peak_bytes: most host memory that this process held while it built, None where that is not known.
        gpu: name of the GPU that it was built on, None without one.
        driver: CUDA version of the driver, None without one.
        hardware_compatible: level beyond that GPU as read back, None for none.
        version_compatible: whether later versions of the library run it.
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
    peak_bytes: int | None
    gpu: str | None
    driver: str | None
    hardware_compatible: str | None
    version_compatible: bool
    runs_here: bool
    reason: str

    def entry(self, file: str, verified: str = "not-run") -> EngineEntry:
        """Returns what a manifest says of this engine when it lies at ``file`` inside a bundle.

        What differs from build to build is not in it: ``export.bundle.build_figures`` keeps that.
        """
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
            hardware_compatible=self.hardware_compatible,
            version_compatible=self.version_compatible,
        )
