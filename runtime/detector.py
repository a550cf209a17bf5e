"""Detector: from pictures to verdicts, with decoding and patch selection beside the inference."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.backends.base import Backend
from runtime.backends.opening import BackendOptions, open_backend
from runtime.backends.selection import BackendReport, select_engine
from runtime.bundle.opening import Bundle, open_bundle
from runtime.decode import MAX_PIXELS, MAX_SIDE, DecodeLimits
from runtime.decode.budget import PixelBudget
from runtime.detection import Detection
from runtime.errors import MissingDependencyError, UsageError
from runtime.machine import usable_cpus
from runtime.pipeline.judging import Judge
from runtime.pipeline.preparation import PreparationOptions, Prepared, load_modules, prepare
from runtime.pipeline.stages import Stages, stream_results
from runtime.pipeline.submission import SharedBatches
from runtime.selftest.opening import self_test_at_open

if TYPE_CHECKING:
    from runtime.decode import Source

logger = logging.getLogger("dgsnet.detector")

_MAX_WORKERS = 8
# A stream whose source pauses for longer than this gets the verdicts on what it has given so far.
MAX_WAIT_MS = 50.0


class Detector:
    """An opened bundle that judges pictures. Make it with ``Detector.open``; use it as a context manager.

    Any number of threads may call ``predict`` and ``stream`` at once; they share the engine and the threads
    that decode. One generator that ``stream`` returned belongs to one thread at a time. A process that was
    forked from the one that opened it gets a UsageError: open the bundle after the fork.

    Attributes:
        bundle: the opened bundle.
        backend: the engine that runs.
        backend_report: what was chosen, and why nothing before it was.
        batch_size: how many mosaics go through the engine at once: pictures, times views.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        report: BackendReport,
        *,
        batch_size: int,
        contexts: int,
        preparation: PreparationOptions,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.backend_report = report
        self.batch_size = batch_size
        workers = min(_MAX_WORKERS, usable_cpus())
        judge = Judge(backend, report.engine, bundle.manifest.decision, batch_size)
        pictures = max(1, batch_size // preparation.views)
        load_modules()
        self._preparation = preparation
        self._closed = False
        self._stages: Stages[Source, Prepared | Detection, Detection] = Stages(
            prepare=self.prepare,
            judge=judge.judge,
            prepare_pool=ThreadPoolExecutor(workers, thread_name_prefix="dgsnet-decode"),
            judge_pool=ThreadPoolExecutor(contexts, thread_name_prefix="dgsnet-infer"),
            batch_size=pictures,
            read_ahead=pictures + workers,
            batches=contexts + 1,
        )
        self._shared = SharedBatches(self._stages, contexts)

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        backend: str = "auto",
        *,
        engine: str | None = None,
        verify: str = "cached",
        cache_dir: str | os.PathLike[str] | None = None,
        selftest: bool = True,
        batch_size: int | None = None,
        threads: int | None = None,
        prepack: bool = True,
        contexts: int = 1,
        cuda_api: str = "cuda-python",
        cuda_graphs: bool | None = None,
        zero_copy: bool = False,
        allow_engine_host_code: bool = False,
        rtx_kernels: str = "eager",
        views: int = 1,
        max_pixels: int = MAX_PIXELS,
        max_side: int = MAX_SIDE,
        allow_truncated: bool = False,
    ) -> Detector:
        """Opens a bundle, chooses an engine, loads and tests it. The hashes are checked when this returns.

        Args:
            bundle: the bundle's folder.
            backend: "auto" or one of ``selection.CHOICES``.
            engine: stem of the one engine that may be taken.
            verify: "full", "cached" or "off"; see ``Verification``.
            cache_dir: the user's cache folder, None for the default.
            selftest: whether golden images must give their stored logits first; see ``runtime.selftest``.
            batch_size: mosaics per run; None for the optimum that the manifest states.
            threads: CPU threads inside the engine; None leaves it to the engine.
            prepack: whether onnxruntime reorders weights at open; without, it opens sooner and runs longer.
            contexts: execution contexts of a TensorRT engine, each with its own thread.
            cuda_api: binding that reaches CUDA for TensorRT: "cuda-python" or "pycuda".
            cuda_graphs: True demands CUDA graphs, False runs without, None takes them where they can be had.
            zero_copy: whether a GPU that shares the CPU's memory works on the staging buffers in place.
            allow_engine_host_code: whether TensorRT plans may bring code for the CPU; trusted bundles only.
            rtx_kernels: when TensorRT-RTX compiles kernels for a batch size: "eager", "lazy" or "none".
            views: mosaics per picture, under fixed permutations, whose logits are averaged.
            max_pixels: larger pictures are refused.
            max_side: likewise, for width and height each.
            allow_truncated: take files that end early as far as they go; the rest is black.

        Raises:
            ManifestError: the bundle is damaged, incomplete, hostile or newer.
            EngineLoadError: the chosen engine cannot be loaded or run.
            SelfTestError: the engine does not reproduce the bundle's golden logits.
            MissingDependencyError: what was asked for cannot run on this machine.
            UsageError: arguments that contradict the bundle, the backend or each other.
        """
        options = BackendOptions(
            threads=threads,
            prepack=prepack,
            cuda_api=cuda_api,
            cuda_graphs=cuda_graphs,
            zero_copy=zero_copy,
            contexts=contexts,
            allow_engine_host_code=allow_engine_host_code,
            cache_dir=cache_dir,
            rtx_kernels=rtx_kernels,
        )
        limits = DecodeLimits(max_pixels, max_side, allow_truncated)
        # One picture of the largest size allowed, or several smaller ones, however many threads decode.
        budget = PixelBudget(max(max_pixels, MAX_PIXELS))
        preparation = PreparationOptions(views=views, limits=limits, budget=budget)
        with ExitStack() as stack:
            opened = stack.enter_context(open_bundle(bundle, verify=verify, cache_dir=cache_dir))
            try:
                report = select_engine(
                    opened.manifest,
                    backend,
                    engine=engine,
                    batch=batch_size,
                    cuda_api=cuda_api,
                    allow_engine_host_code=allow_engine_host_code,
                )
                size = _batch_size(batch_size, report)
                running = stack.enter_context(open_backend(opened, report, options))
                if selftest:
                    self_test_at_open(opened, running, report, cache_dir)
            except (UsageError, MissingDependencyError):
                raise
            except Exception:
                # A damaged file is the better explanation of an engine that does not load or compute.
                opened.join()
                raise
            opened.join()
            stack.pop_all()
        if verify == "off":
            logger.warning("the hashes of the bundle were not checked (verify off)")
        for line in report.lines():
            logger.log(logging.INFO if backend == "auto" else logging.DEBUG, line)
        preparation = replace(preparation, permutation=opened.manifest.preprocessing.permutation)
        return cls(opened, running, report, batch_size=size, contexts=contexts, preparation=preparation)

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what runs, stops the threads and frees the engine; harmless when called twice.

        In a child that was forked it does nothing: neither threads nor engine are there to be stopped.
        """
        self._closed = True
        if not self._stages.owner.is_this_process:
            return
        self._stages.prepare_pool.shutdown(wait=True, cancel_futures=True)
        self._stages.judge_pool.shutdown(wait=True, cancel_futures=True)
        self.backend.close()
        self.bundle.close()

    def prepare(self, item: Source) -> Prepared | Detection:
        """Returns an item's mosaics in this thread, or the detection that says why there are none.

        Raises:
            UsageError: this process was forked from the one that opened the detector.
        """
        self._stages.owner.check("the detector")
        return prepare(item, self._preparation)

    def predict(self, items: Iterable[Source]) -> list[Detection]:
        """Judges all items: a result of the same length and order; an item that fails carries its error.

        Args:
            items: anything that ``decode_image`` takes.

        Raises:
            UsageError: the detector is closed or of another process, or ``items`` is one picture.
        """
        return list(self.stream(items, max_wait_ms=None))

    def stream(
        self, items: Iterable[Source], *, max_wait_ms: float | None = MAX_WAIT_MS
    ) -> Iterator[Detection]:
        """Judges items as they come, in order, holding only a few batches in memory.

        ``items`` is read in a thread of its own, a few batches ahead; what it raises is raised here, after
        the verdicts on the items before it. Closing the generator stops everything that it started.

        Args:
            items: anything that ``decode_image`` takes.
            max_wait_ms: how long a batch waits for an item that ``items`` has not given yet; None until the
                batch is full, so that equal items always meet in equal batches.

        Raises:
            UsageError: the detector is closed or of another process, or ``items`` is one picture.
        """
        self._check_open()
        if _is_one_picture(items):
            found = type(items).__name__
            raise UsageError(f"items: found one {found}, expected several; put a single picture in a list")
        return stream_results(items, self._stages, None if max_wait_ms is None else max_wait_ms / 1e3)

    def submit(self, item: Source) -> Future[Detection]:
        """Judges one item in a batch that all callers share; returns at once. For servers, from any thread.

        While the engine runs, items gather, and its next run takes all of them up to ``batch_size``; an idle
        engine starts with the first. Nothing bounds how many wait: that is the server's to limit.

        Args:
            item: anything that ``decode_image`` takes.

        Returns:
            A future of its detection, which carries the error of an item that fails.
            ``asyncio.wrap_future`` makes it awaitable.

        Raises:
            UsageError: the detector is closed or of another process; a future that waits when it is closed
                raises it too.
        """
        self._check_open()
        return self._shared.submit(item)

    def _check_open(self) -> None:
        self._stages.owner.check("the detector")
        if self._closed:
            raise UsageError("the detector is closed; open the bundle again")


def _is_one_picture(items: object) -> bool:
    """Whether this is no list, or would be taken apart: a text into letters, a file into lines, an array."""
    is_file = isinstance(items, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(items, "read")
    # A picture of Pillow's gives no items at all.
    is_several = hasattr(items, "__iter__") or hasattr(items, "__getitem__")
    return is_file or not is_several or getattr(items, "ndim", 4) in (2, 3)


def _batch_size(asked: int | None, report: BackendReport) -> int:
    # Widest first: a second profile, for single pictures, lies inside it.
    _, best, most = max(report.entry.profiles, key=lambda profile: profile[2])
    if asked is None:
        return best
    if not 1 <= asked <= most:
        raise UsageError(f"batch size: found {asked}, engine {report.engine} takes 1 to {most}")
    return asked
