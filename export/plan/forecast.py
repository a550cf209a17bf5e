"""The forecast of one step of a build, as lines fitted to real builds.

TensorRT-RTX 1.7.1.116, two CPU cores, no GPU, hand-made towers, two profiles, five targets; MB = 10^6 bytes,
CPU seconds since the cores were shared. ``tests/export/test_plan.py`` builds some of them again.

| width x blocks | precision | graph MB | peak MB | engine MB | CPU s |
|---|---|---|---|---|---|
| 256 x 12 | fp16 | 21 | 448 | 29 | 3.9 |
| 512 x 6 | fp32 | 82 | 551 | 90 | |
| 768 x 12 | fp16 | 175 | 931 | 185 | 5.0 |
| 768 x 12 | fp32 | 350 | 1430 | 362 | 7.1 |
| 1024 x 24 (ViT-L) | fp16 | 612 | 2508 | 625 | 11.0 |
| 1024 x 24 (ViT-L) | fp32 | 1222 | 4233 | 1242 | 14.8 |

From a checkpoint (random weights, ``--backend onnxruntime --max-batch 8``) to both graphs and their checks,
memory summed over all processes of the build: ViT-B/32, 350 MB of FP32 weights: 1.93 GB, 36 CPU seconds;
ViT-L/14, 1217 MB: 3.90 GB, 116 CPU seconds.

With one profile 0.6 of the time and 0.94 to 0.96 of the memory; the number of targets made no difference.
TensorRT proper was never measured: its forecast is that of TensorRT-RTX, which shares the parser and the
builder's copies of the weights, with room for what is known to come on top. It errs on the large side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GB = 10**9
MB = 10**6

# 2 to 28 % above every measured peak.
_ENGINE_BASE_BYTES = 420 * MB
_ENGINE_BYTES_PER_GRAPH_BYTE = 3.5
# 1 to 14 % above every measured size.
_CODE_BYTES = 12 * MB
_FILE_BYTES_PER_GRAPH_BYTE = 1.02
_ENGINE_SECONDS = 4.0
_ENGINE_SECONDS_PER_GB = 11.0
_ONE_PROFILE = 0.6
# A busy or slow machine takes several times the CPU seconds of a quiet one.
_SLOWEST = 4.0

# TensorRT proper: CUDA context and kernel libraries; scratch memory where --workspace does not say.
_CUDA_BYTES = 2 * GB
_WORKSPACE_BYTES = 1 * GB

# From a checkpoint to both graphs, compared on a CPU: 6 % above both measured peaks.
_GRAPHS_BASE_BYTES = 1200 * MB
_GRAPHS_BYTES_PER_FP32_BYTE = 2.4
_GRAPHS_SECONDS = 10.0
_GRAPHS_SECONDS_PER_GB = 90.0


@dataclass(frozen=True)
class StepForecast:
    """What one step takes.

    Attributes:
        name: of the step.
        peak_bytes: most memory at one time; on a device that shares it with its GPU the GPU's part too.
        disk_bytes: most disk at one time beside what is there already.
        minutes: least and most.
        is_measured: whether such builds were measured; else it is an estimate.
    """

    name: str
    peak_bytes: int
    disk_bytes: int
    minutes: tuple[float, float]
    is_measured: bool

    def to_json(self) -> dict[str, Any]:
        """Returns all fields; minutes as a list."""
        return {
            "name": self.name,
            "peak_bytes": self.peak_bytes,
            "disk_bytes": self.disk_bytes,
            "minutes": [round(minutes, 2) for minutes in self.minutes],
            "measured": self.is_measured,
        }


def engine_forecast(
    backend: str, graph_bytes: int, *, profiles: int = 2, workspace_bytes: int | None = None, copies: int = 1
) -> StepForecast:
    """Returns what building one engine takes.

    Args:
        backend: "tensorrt" or "tensorrt-rtx".
        graph_bytes: of the graph that it is built from, weights included.
        profiles: how many optimisation profiles.
        workspace_bytes: the limit of scratch memory, None for no limit.
        copies: how often the engine lies on the disk at one time.
    """
    gigabytes = graph_bytes / GB
    peak = _ENGINE_BASE_BYTES + int(_ENGINE_BYTES_PER_GRAPH_BYTE * graph_bytes)
    disk = copies * (_CODE_BYTES + int(_FILE_BYTES_PER_GRAPH_BYTE * graph_bytes))
    if backend == "tensorrt-rtx":
        share = 1.0 if profiles > 1 else _ONE_PROFILE
        minutes = share * (_ENGINE_SECONDS + _ENGINE_SECONDS_PER_GB * gigabytes) / 60
        return StepForecast(f"{backend} engine", peak, disk, (minutes, _SLOWEST * minutes), is_measured=True)
    # Timing the kernels needs the weights on the GPU, which on a Jetson is the same memory.
    workspace = _WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
    peak += _CUDA_BYTES + graph_bytes + workspace
    return StepForecast(
        f"{backend} engine", peak, disk, (1 + 5 * gigabytes, 5 + 40 * gigabytes), is_measured=False
    )


def graphs_forecast(fp32_bytes: int, fp16_bytes: int) -> StepForecast:
    """Returns what it takes to write both graphs of a source and to compare them with its reference.

    Args:
        fp32_bytes: of the FP32 graph, weights included.
        fp16_bytes: of the FP16 graph.
    """
    gigabytes = fp32_bytes / GB
    minutes = (_GRAPHS_SECONDS + _GRAPHS_SECONDS_PER_GB * gigabytes) / 60
    return StepForecast(
        "ONNX graphs and their checks",
        _GRAPHS_BASE_BYTES + int(_GRAPHS_BYTES_PER_FP32_BYTE * fp32_bytes),
        fp32_bytes + fp16_bytes + 20 * MB,
        (minutes, _SLOWEST * minutes),
        is_measured=True,
    )
