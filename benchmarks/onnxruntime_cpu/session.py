"""One contestant in a process of its own: opened, held to parity, warmed up, timed lap by lap on request."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.laps import Lap, time_lap
from benchmarks.onnxruntime_cpu.contestants import ENVIRONMENT, Outputs, open_contestant
from benchmarks.onnxruntime_cpu.graphs import Graphs
from runtime.errors import GateFailedError
from runtime.spec import MOSAIC_SIDE
from runtime.tolerances import TOLERANCES, logit_tolerance

# Before a lap, for threads of the contestant before it that still wait at full speed.
_PAUSE_SECONDS = 0.05


class Session:
    """A process that holds one contestant. Use as a context manager.

    Args:
        name: of the contestant.
        graphs: the model.
        reference: logits and embeddings of the mosaics by PyTorch; their number is the batch.
        threads: CPU threads.

    Attributes:
        refusal: why a time would mean nothing, else None.

    Raises:
        GateFailedError: the process ended.
    """

    def __init__(self, name: str, graphs: Graphs, reference: Outputs, threads: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, name, graphs, reference, threads))
        with _environment(ENVIRONMENT.get(name, {})):
            self._process.start()
        far.close()
        self.refusal: str | None = self._answered()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._pipe.close()
        self._process.join()

    def lap(self) -> Lap:
        """Times one run of the whole batch."""
        lap: Lap = self._answered(is_asked=True)
        return lap

    def _answered(self, *, is_asked: bool = False) -> Any:
        try:
            if is_asked:
                self._pipe.send(True)
            return self._pipe.recv()
        except (EOFError, ConnectionError) as err:
            self._process.join()
            raise GateFailedError(f"{self.name}: its process ended with {self._process.exitcode}") from err


def mosaics(count: int) -> NDArray[np.uint8]:
    """Returns noise, uint8 ``[count, 224, 224, 3]``; the time does not depend on what a picture shows."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, MOSAIC_SIDE, MOSAIC_SIDE, 3), dtype=np.uint8)


def outputs(name: str, graphs: Graphs, batch: int, threads: int) -> Outputs:
    """Returns what a contestant makes of ``batch`` mosaics."""
    return open_contestant(name, graphs, threads)(mosaics(batch))


def parity_refusal(found: Outputs, reference: Outputs) -> str | None:
    """Returns why a timing would mean nothing: logits other than the reference's."""
    difference = float(np.abs(found[0] - reference[0]).max())
    allowed = logit_tolerance(TOLERANCES, "fp32")
    # Not ">": NaN must not pass.
    if not difference <= allowed:
        return f"max |difference of logits| {difference:.3g}, allowed {allowed:.3g}"
    return None


def _serve(pipe: Connection, name: str, graphs: Graphs, reference: Outputs, threads: int) -> None:
    images = mosaics(len(reference[0]))
    try:
        run = open_contestant(name, graphs, threads)
        refusal = parity_refusal(run(images), reference)
    # A configuration that this version cannot open or run is a finding, whatever it raises.
    except Exception as err:
        pipe.send(" ".join(str(err).split())[:200] or type(err).__name__)
        return
    # The first run took memory; this is the first that does not.
    run(images)
    pipe.send(refusal)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        time.sleep(_PAUSE_SECONDS)
        pipe.send(time_lap(lambda: run(images)))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the process that starts meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
