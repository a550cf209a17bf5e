"""The build itself: a worker thread under a progress bar, stopped by Ctrl-C, its time and memory taken."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.engine.peak_memory import PeakMemory
from export.engine.trt_module import TrtModule
from export.engine.watch import PhaseTree, make_monitor
from runtime.console import Progress, logger
from runtime.errors import EngineBuildError

if TYPE_CHECKING:
    import tensorrt

    from runtime.backends.tensorrt.log import TensorRtLog

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class SerializedEngine:
    """The bytes of an engine, how many seconds they took, and the most host memory in bytes."""

    plan: tensorrt.IHostMemory
    seconds: float
    peak_bytes: int | None


def build_serialized(
    trt: TrtModule,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    log: TensorRtLog,
    title: str,
) -> SerializedEngine:
    """Builds in a worker thread: TensorRT lets go of the interpreter, so Ctrl-C is still heard here.

    Raises:
        EngineBuildError: nothing was built; the library's last errors say why.
        KeyboardInterrupt: after TensorRT has stopped.
    """
    tree = PhaseTree()
    monitor = make_monitor(trt.api, tree)
    config.progress_monitor = monitor
    plans: list[tensorrt.IHostMemory | None] = []
    errors: list[Exception] = []
    # Not is_alive: a join that Ctrl-C ends may declare a running thread stopped (Python 3.10 to 3.12).
    has_ended = threading.Event()

    def work() -> None:
        try:
            plans.append(builder.build_serialized_network(network, config))
        except Exception as err:
            errors.append(err)
        finally:
            has_ended.set()

    memory = PeakMemory()
    started = time.monotonic()
    worker = threading.Thread(target=work, name="engine-build", daemon=True)
    with Progress(title, 100) as progress:
        worker.start()
        try:
            while not has_ended.wait(_POLL_SECONDS):
                memory.sample()
                progress.advance(int(100 * tree.share()) - progress.done, tree.note)
        except KeyboardInterrupt:
            _stop(has_ended, tree)
            raise
        plan = plans[0] if plans else None
        error = errors[0] if errors else None
        if plan is None:
            reason = error or log.take_errors() or "no reason given"
            raise EngineBuildError(f"{trt.backend} {trt.version} built nothing: {reason}") from error
        progress.advance(100 - progress.done)
    return SerializedEngine(plan, time.monotonic() - started, memory.peak_bytes())


def _stop(has_ended: threading.Event, tree: PhaseTree) -> None:
    """Tells TensorRT to stop and waits: it must not be torn down under its own threads."""
    tree.cancel()
    logger.info("stopping: the library ends its current step")
    while not has_ended.is_set():
        try:
            has_ended.wait()
        except KeyboardInterrupt:
            logger.warning("still stopping; the step cannot be cut short")
