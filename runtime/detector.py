"""Detector: from pictures to verdicts, with decoding and patch selection beside the inference."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.backends.onnx_session import OnnxSession
from runtime.bundle import Bundle, open_bundle
from runtime.decode import MAX_PIXELS, decode_image
from runtime.detection import Detection, Timing
from runtime.errors import DgsNetError, ImageError, MissingDependencyError, UsageError
from runtime.golden import read_golden
from runtime.names import printable_name
from runtime.patches import select_patches
from runtime.selection import BackendReport, select_engine
from runtime.selftest import QUICK_ROWS, manifest_tolerance, quick_self_test

if TYPE_CHECKING:
    from runtime.decode import Source

logger = logging.getLogger("dgsnet.detector")

_MAX_WORKERS = 8


@dataclass(frozen=True)
class _Prepared:
    path: str | None
    mosaic: NDArray[np.uint8]
    decode_ms: float
    select_ms: float


class Detector:
    """An opened bundle that judges pictures. Make it with ``Detector.open``; use it as a context manager.

    One thread at a time may iterate over ``predict`` or ``stream``.

    Attributes:
        bundle: the opened bundle.
        backend: the engine that runs.
        backend_report: what was chosen, and why nothing before it was.
        batch_size: how many pictures go through the engine at once.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, report: BackendReport, batch_size: int, max_pixels: int
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.backend_report = report
        self.batch_size = batch_size
        self._max_pixels = max_pixels
        self._permutation = bundle.manifest.preprocessing.permutation
        self._decision = bundle.manifest.decision
        self._workers = min(_MAX_WORKERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="dgsnet-decode")

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
        max_pixels: int = MAX_PIXELS,
    ) -> Detector:
        """Opens a bundle, chooses an engine, loads and tests it. The hashes are checked when this returns.

        Args:
            bundle: the bundle's folder.
            backend: "auto" or one of ``selection.CHOICES``.
            engine: stem of the one engine that may be taken.
            verify: "full", "cached" or "off"; see ``Verification``.
            cache_dir: the user's cache folder, None for the default.
            selftest: whether two golden images must give their stored logits first.
            batch_size: pictures per run; None for the optimum that the manifest states.
            threads: CPU threads inside the engine; None leaves it to the engine.
            max_pixels: larger pictures are refused.

        Raises:
            ManifestError: the bundle is damaged, incomplete, hostile or newer.
            EngineLoadError: the chosen engine cannot be loaded or run.
            SelfTestError: the engine does not reproduce the bundle's golden logits.
            MissingDependencyError: what was asked for cannot run on this machine.
            UsageError: arguments that contradict the bundle or each other.
        """
        with ExitStack() as stack:
            opened = stack.enter_context(open_bundle(bundle, verify=verify, cache_dir=cache_dir))
            try:
                report = select_engine(opened.manifest, backend, engine=engine, batch=batch_size)
                size = _batch_size(batch_size, report)
                running = stack.enter_context(_open_backend(opened, report, threads))
                if selftest:
                    tolerance = manifest_tolerance(opened.manifest, report.entry.precision)
                    golden_path = opened.file(opened.manifest.golden_file)
                    golden = read_golden(golden_path, opened.manifest.embed_dim, limit=QUICK_ROWS)
                    quick_self_test(running, golden, tolerance)
            except (UsageError, MissingDependencyError):
                raise
            except DgsNetError:
                # A damaged file is the better explanation of an engine that does not load or compute.
                opened.join()
                raise
            opened.join()
            stack.pop_all()
        if verify == "off":
            logger.warning("the hashes of the bundle were not checked (verify off)")
        for line in report.lines():
            logger.log(logging.INFO if backend == "auto" else logging.DEBUG, line)
        return cls(opened, running, report, size, max_pixels)

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the engine and stops the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.backend.close()
        self.bundle.close()

    def predict(self, items: Iterable[Source]) -> list[Detection]:
        """Judges all items: a result of the same length and order; an item that fails carries its error.

        Args:
            items: anything that ``decode_image`` takes.
        """
        return list(self.stream(items))

    def stream(self, items: Iterable[Source]) -> Iterator[Detection]:
        """Judges items as they come, in order, holding only a few batches in memory.

        Verdicts come a batch at a time: the first after ``batch_size`` items, or at the end of ``items``.
        """
        waiting: deque[Future[_Prepared | Detection]] = deque()
        source = iter(items)
        ahead = 2 * self.batch_size + self._workers
        exhausted = False
        try:
            while not exhausted or waiting:
                while not exhausted and len(waiting) < ahead:
                    try:
                        item = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    waiting.append(self._pool.submit(self._prepare, item))
                batch = [waiting.popleft().result() for _ in range(min(self.batch_size, len(waiting)))]
                yield from self._judge(batch)
        finally:
            for future in waiting:
                future.cancel()

    def _prepare(self, item: Source) -> _Prepared | Detection:
        path = os.fsdecode(item) if isinstance(item, (str, os.PathLike)) else None
        try:
            started = time.perf_counter()
            image = decode_image(item, max_pixels=self._max_pixels)
            decoded = time.perf_counter()
            try:
                mosaic = select_patches(image, permutation=self._permutation)
            except ImageError as err:
                raise ImageError(f"{printable_name(path)}: {err}" if path is not None else str(err)) from err
            selected = time.perf_counter()
        except DgsNetError as err:
            return Detection.failed(path, err)
        return _Prepared(path, mosaic, (decoded - started) * 1e3, (selected - decoded) * 1e3)

    def _judge(self, batch: list[_Prepared | Detection]) -> list[Detection]:
        ready = [item for item in batch if isinstance(item, _Prepared)]
        verdicts = iter(self._verdicts(ready))
        return [next(verdicts) if isinstance(item, _Prepared) else item for item in batch]

    def _verdicts(self, ready: list[_Prepared]) -> list[Detection]:
        if not ready:
            return []
        try:
            started = time.perf_counter()
            logits, _ = self.backend.run(np.stack([item.mosaic for item in ready]))
            infer_ms = (time.perf_counter() - started) * 1e3 / len(ready)
        except DgsNetError as err:
            if len(ready) == 1:
                return [Detection.failed(ready[0].path, err)]
            logger.warning("a batch of %d failed and is tried one by one: %s", len(ready), err)
            return [detection for item in ready for detection in self._verdicts([item])]
        pairs = zip(ready, logits, strict=True)
        return [self._verdict(item, float(logit), infer_ms) for item, logit in pairs]

    def _verdict(self, item: _Prepared, logit: float, infer_ms: float) -> Detection:
        try:
            verdict = self._decision.judge(logit)
        except DgsNetError as err:
            return Detection.failed(item.path, err)
        return Detection.judged(
            item.path,
            verdict,
            logit=logit,
            threshold=self._decision.threshold,
            backend=self.backend.name,
            engine=self.backend_report.engine,
            ms=Timing(item.decode_ms, item.select_ms, infer_ms),
        )


def _profile(report: BackendReport) -> tuple[int, int, int]:
    # Widest first: with one profile, which is all that this version writes, there is nothing to choose.
    return max(report.entry.profiles, key=lambda profile: profile[2])


def _batch_size(asked: int | None, report: BackendReport) -> int:
    _, best, most = _profile(report)
    if asked is None:
        return best
    if not 1 <= asked <= most:
        raise UsageError(f"batch size: found {asked}, engine {report.engine} takes 1 to {most}")
    return asked


def _open_backend(bundle: Bundle, report: BackendReport, threads: int | None) -> Backend:
    return OnnxSession(
        bundle.file(report.entry.file),
        device=report.device,
        embed_dim=bundle.manifest.embed_dim,
        profile=_profile(report),
        threads=threads,
    )
