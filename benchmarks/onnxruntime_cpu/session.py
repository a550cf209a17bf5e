"""One contestant in one process: opened, held to parity, warmed up, timed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.laps import Lap, time_lap
from benchmarks.onnxruntime_cpu.contestants import Outputs, open_contestant
from benchmarks.onnxruntime_cpu.graphs import Graphs
from runtime.spec import MOSAIC_SIDE
from runtime.tolerances import TOLERANCES, logit_tolerance

# The first run takes memory, the second is the first that does not.
_WARM_UP = 2


@dataclass(frozen=True)
class Session:
    """What one process of one contestant found.

    Attributes:
        laps: each a run of the whole batch; none where it was refused.
        refusal: why a time would mean nothing, else None.
    """

    laps: tuple[Lap, ...] = ()
    refusal: str | None = None


def mosaics(count: int) -> NDArray[np.uint8]:
    """Returns noise, uint8 ``[count, 224, 224, 3]``; the time does not depend on what a picture shows."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, MOSAIC_SIDE, MOSAIC_SIDE, 3), dtype=np.uint8)


def outputs(name: str, graphs: Graphs, batch: int, threads: int) -> Outputs:
    """Returns what a contestant makes of ``batch`` mosaics."""
    return open_contestant(name, graphs, threads)(mosaics(batch))


def session(name: str, graphs: Graphs, reference: Outputs, laps: int, threads: int) -> Session:
    """Opens a contestant and times it.

    Args:
        name: of the contestant.
        graphs: the model.
        reference: logits and embeddings of the mosaics by PyTorch; their number is the batch.
        laps: to time.
        threads: CPU threads.
    """
    images = mosaics(len(reference[0]))
    try:
        run = open_contestant(name, graphs, threads)
        found = run(images)
    # A configuration that this version cannot open or run is a finding, whatever it raises.
    except Exception as err:
        return Session(refusal=" ".join(str(err).split())[:200] or type(err).__name__)
    refusal = parity_refusal(found, reference)
    if refusal is not None:
        return Session(refusal=refusal)
    for _ in range(_WARM_UP - 1):
        run(images)
    return Session(tuple(time_lap(lambda: run(images)) for _ in range(laps)))


def parity_refusal(found: Outputs, reference: Outputs) -> str | None:
    """Returns why a timing would mean nothing: logits other than the reference's."""
    difference = float(np.abs(found[0] - reference[0]).max())
    allowed = logit_tolerance(TOLERANCES, "fp32")
    # Not ">": NaN must not pass.
    if not difference <= allowed:
        return f"max |difference of logits| {difference:.3g}, allowed {allowed:.3g}"
    return None
