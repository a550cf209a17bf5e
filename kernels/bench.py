"""Speed of the surgery kernels on a CUDA device, against eager PyTorch, torch.compile and a plain copy.

Device time comes from CUDA graph replay: the graph holds one call per set of buffers, the sets together
exceed the L2 cache, and every result stays alive, so that each call reads and writes device memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels import accuracy, surgery, surgery_affine
from kernels.report import DTYPES

# fp32 is what training calls. Each dtype meets the corners of the floors below and the bandwidth's.
BATCHES = {"fp32": (32, 512, 8192, 65536), "fp16": (32, 8192, 131072), "bf16": (32, 8192, 131072)}
WIDTHS = {"fp32": (512, 768, 1024, 1280), "fp16": (512, 768, 1280), "bf16": (512, 768, 1280)}
WARM_UP = 3
ALIGN, EPS = 0.2, 1e-6
# Floors of the device time: B and D up to where they hold, and the bytes from where bandwidth is all.
MIN_OVER_EAGER, MIN_OVER_COMPILE, MIN_OF_COPY, MAX_HOST_US = 3.0, 0.95, 0.8, 40.0
FLOOR_BATCHES, FLOOR_WIDTHS, BANDWIDTH_BYTES = (32, 8192), (512, 1280), 256_000_000
HEADER = (
    f"{'kernel':<14}{'B':>7}{'D':>6}{'device us':>11}{'p10':>9}{'p90':>9}{'eager us':>10}{'compile us':>12}"
    f"{'copy us':>9}{'of copy':>9}{'host us':>9}"
)

Run = Callable[..., Tensor]


@dataclass
class Speed:
    """Microseconds of one kernel and its rivals: name to percentiles 10, 50 and 90 of the device time."""

    form: str
    dtype: str
    batch: int
    width: int
    bytes_moved: int
    device_us: dict[str, list[float]]
    host_us: dict[str, float]
    over_eager: float = 0.0
    over_compile: float = 0.0
    of_copy: float = 0.0
    missed: list[str] = field(default_factory=list)


def textbook_affine(grad: Tensor, w_text: Tensor, r_text: Tensor, w_image: Tensor, r_image: Tensor) -> Tensor:
    """The eager form that a reader of the paper would write, without the reference's guards.

    The guards cost the reference extra launches; a rival that lacks them flatters nobody.
    """
    g_text, g_image = r_text[:, None] * w_text, r_image[:, None] * w_image
    return textbook(grad, g_text, g_image)


def textbook(grad: Tensor, g_text: Tensor, g_image: Tensor) -> Tensor:
    """The same for given gradients."""
    harm = torch.relu(g_text.float())
    harm = harm / (harm.norm(dim=1, keepdim=True) + EPS)
    g = grad.float() + ALIGN * g_image.float().clamp(max=0)
    return (g - (g * harm).sum(dim=1, keepdim=True) * harm).to(grad.dtype)


def rivals(form: str) -> dict[str, Run]:
    """Returns what is timed, by name; all take the positional arguments of the public function."""
    affine = form == "affine"
    public: Run = surgery_affine if affine else surgery
    plain: Run = textbook_affine if affine else textbook
    return {
        "ours": lambda *inputs: public(*inputs, align=ALIGN, eps=EPS, backend="auto"),
        "eager": plain,
        "compile": torch.compile(plain, dynamic=False),
        "copy": lambda grad, *_rest: grad.clone(),
    }


def list_shapes(
    forms: Sequence[str], dtypes: Sequence[str], batches: Sequence[int] = (), widths: Sequence[int] = ()
) -> list[tuple[str, str, int, int]]:
    """Returns form, dtype, B and D of what is to be timed; without ``batches`` or ``widths`` the defaults."""
    return [
        (form, dtype, batch, width)
        for form in forms
        for dtype in dtypes
        for width in widths or WIDTHS[dtype]
        for batch in batches or BATCHES[dtype]
    ]


def find_wrong_numbers(shapes: Sequence[tuple[str, str, int, int]]) -> list[str]:
    """Runs the accuracy gate on the device for the kernels behind these shapes; one line per failure."""
    outcomes = []
    for form, dtype, width in dict.fromkeys((form, dtype, width) for form, dtype, _, width in shapes):
        cases = accuracy.list_cases(
            (width,), rows=(1, 33, 1000), dtypes=(DTYPES[dtype],), forms=(form == "affine",)
        )
        outcomes += accuracy.sweep(cases, device="cuda", backend="triton")
    return [f"{outcome.case}: {problem}" for outcome in outcomes for problem in outcome.problems]


def moved_bytes(form: str, dtype: str, batch: int, width: int) -> int:
    """Returns the bytes of the [B, D] tensors that a call must read and write."""
    return (2 if form == "affine" else 4) * batch * width * DTYPES[dtype].itemsize


def count_sets(call_bytes: int, cache_bytes: int, free_bytes: int) -> int:
    """Returns how many sets of buffers defeat the cache, twice over.

    Raises:
        ValueError: the device's free memory does not hold them.
    """
    sets = max(4, math.ceil(2 * cache_bytes / call_bytes))
    # The results of all four are kept, and eager's temporaries come on top.
    if sets * call_bytes * 4 > free_bytes:
        raise ValueError(
            f"device memory: found {free_bytes / 1e9:.1f} GB free, expected "
            f"{4 * sets * call_bytes / 1e9:.1f} GB for buffers beyond the cache: use a smaller --batch"
        )
    return sets


def measure(form: str, dtype: str, batch: int, width: int, repeats: int) -> Speed:
    """Times one shape.

    Raises:
        ValueError: the device's free memory does not hold its buffers.
    """
    call_bytes = moved_bytes(form, dtype, batch, width)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    torch.cuda.empty_cache()
    sets = count_sets(call_bytes, properties.L2_cache_size, torch.cuda.mem_get_info()[0])
    case = accuracy.Case(form == "affine", batch, width, DTYPES[dtype])
    inputs = [accuracy.make_inputs(case, "cuda")]
    per_set = 1 if form == "affine" else 3
    while len(inputs) < sets:
        inputs.append([t.clone() for t in inputs[0][:per_set]] + inputs[0][per_set:])
    torch.compiler.reset()
    runs = rivals(form)
    replays = {name: _capture(run, inputs) for name, run in runs.items()}
    device_us = take_turns(replays, repeats)
    host_us = take_turns({name: _host_timer(run, inputs[0]) for name, run in runs.items()}, repeats)
    return judge(
        Speed(
            form, dtype, batch, width, call_bytes,
            {name: percentiles(times) for name, times in device_us.items()},
            {name: statistics.median(times) for name, times in host_us.items()},
        )
    )  # fmt: skip


def take_turns(timers: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Asks each timer once a lap, so that a clock that drifts drifts for all; the first laps do not count."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    for lap in range(WARM_UP + repeats):
        for name, timer in timers.items():
            taken = timer()
            if lap >= WARM_UP:
                times[name].append(taken)
    return times


def _capture(run: Run, inputs: list[list[Tensor]]) -> Callable[[], float]:
    """Returns a timer of the device: microseconds a call, from replaying a graph of one call per set."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run(*inputs[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [run(*arguments) for arguments in inputs]

    def replay() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000 / len(kept)

    return replay


def _host_timer(run: Run, arguments: list[Tensor], calls: int = 20) -> Callable[[], float]:
    """Returns a timer of the calling thread only: so few calls that the queue of launches never fills."""

    def call() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run(*arguments)
        taken = (time.perf_counter() - start) / calls * 1e6
        torch.cuda.synchronize()
        return taken

    return call


def percentiles(values: list[float]) -> list[float]:
    """Returns percentiles 10, 50 and 90."""
    ordered = statistics.quantiles(values, n=10, method="inclusive")
    return [ordered[0], statistics.median(values), ordered[8]]


def judge(speed: Speed) -> Speed:
    """Fills in the ratios, and the floors that were missed."""
    median = {name: values[1] for name, values in speed.device_us.items()}
    speed.over_eager = median["eager"] / median["ours"]
    speed.over_compile = median["compile"] / median["ours"]
    # The general form moves twice what a copy of grad does.
    copied = speed.bytes_moved * (1.0 if speed.form == "affine" else 0.5)
    speed.of_copy = (speed.bytes_moved / median["ours"]) / (copied / median["copy"])
    inside = (
        FLOOR_BATCHES[0] <= speed.batch <= FLOOR_BATCHES[1]
        and FLOOR_WIDTHS[0] <= speed.width <= FLOOR_WIDTHS[1]
    )
    bound = speed.width % 8 == 0 and copied >= BANDWIDTH_BYTES
    speed.missed = [
        f"{name} {value:.2f}, expected {relation} {floor:g}"
        for name, applies, value, relation, floor in (
            ("times eager", inside, speed.over_eager, "at least", MIN_OVER_EAGER),
            ("times torch.compile", inside, speed.over_compile, "at least", MIN_OVER_COMPILE),
            ("of copy bandwidth", bound, speed.of_copy, "at least", MIN_OF_COPY),
            ("us on the host", True, speed.host_us["ours"], "at most", MAX_HOST_US),
        )
        if applies and not (value <= floor if relation == "at most" else value >= floor)
    ]
    return speed


def line(speed: Speed) -> str:
    """Returns the row of the table under ``HEADER``."""
    low, median, high = speed.device_us["ours"]
    return (
        f"{speed.form + ' ' + speed.dtype:<14}{speed.batch:>7}{speed.width:>6}"
        f"{median:>11.2f}{low:>9.2f}{high:>9.2f}"
        f"{speed.device_us['eager'][1]:>10.2f}{speed.device_us['compile'][1]:>12.2f}"
        f"{speed.device_us['copy'][1]:>9.2f}{speed.of_copy:>9.0%}{speed.host_us['ours']:>9.1f}"
        + "".join(f"  BELOW FLOOR: {text}" for text in speed.missed)
    )


def curves(speeds: list[Speed]) -> dict[str, list[tuple[float, float]]]:
    """Returns share of copy bandwidth over bytes moved, one curve per kernel and width."""
    result: dict[str, list[tuple[float, float]]] = {}
    for speed in speeds:
        name = f"{speed.form} {speed.dtype} D={speed.width}"
        result.setdefault(name, []).append((float(speed.bytes_moved), speed.of_copy))
    return result


def describe_machine() -> dict[str, Any]:
    """Returns the GPU and the versions that the numbers depend on."""
    from kernels.gradient_surgery.triton_kernel import VERSION

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "torch": torch.__version__,
        "triton": VERSION,
    }
