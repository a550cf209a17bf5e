"""From prepared items to verdicts: one run of the engine a batch, and one a picture where a batch failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.decision import Decision
from runtime.detection import Detection, Timing
from runtime.errors import DgsNetError, EngineLoadError, kind_and_line
from runtime.patches.views import averaged_logits
from runtime.pipeline.preparation import Prepared

logger = logging.getLogger("dgsnet.judging")


class Judge:
    """Runs an engine over prepared items and decides.

    Args:
        backend: the engine.
        engine: stem of its file.
        decision: from logits to labels.
        rows: how many mosaics go through the engine at once.
    """

    def __init__(self, backend: Backend, engine: str, decision: Decision, rows: int) -> None:
        self._backend = backend
        self._engine = engine
        self._decision = decision
        self._rows = rows

    def judge(self, items: Sequence[Prepared | Detection]) -> list[Detection]:
        """Returns one detection per item, in order; what failed before stays as it is. Raises nothing."""
        ready = [item for item in items if isinstance(item, Prepared)]
        verdicts = iter(self._verdicts(ready))
        return [next(verdicts) if isinstance(item, Prepared) else item for item in items]

    def _verdicts(self, ready: list[Prepared]) -> list[Detection]:
        if not ready:
            return []
        try:
            started = time.perf_counter()
            logits = self._logits(ready)
            infer_ms = (time.perf_counter() - started) * 1e3 / len(ready)
        except Exception as err:  # one picture must not fail its neighbours, whatever the engine raises
            failure = err if isinstance(err, DgsNetError) else _unexpected(err)
            if len(ready) == 1:
                return [Detection.failed(ready[0].path, failure)]
            logger.warning("a batch of %d failed and is tried one by one: %s", len(ready), failure)
            return [detection for item in ready for detection in self._verdicts([item])]
        return [
            self._verdict(item, float(logit), infer_ms) for item, logit in zip(ready, logits, strict=True)
        ]

    def _logits(self, ready: list[Prepared]) -> NDArray[np.float64]:
        mosaics = np.concatenate([item.mosaics for item in ready])
        runs = [
            self._backend.run(mosaics[start : start + self._rows])[0]
            for start in range(0, len(mosaics), self._rows)
        ]
        with np.errstate(invalid="ignore"):  # infinities of both signs: the decision refuses their mean
            return averaged_logits(np.concatenate(runs), len(ready[0].mosaics))

    def _verdict(self, item: Prepared, logit: float, infer_ms: float) -> Detection:
        try:
            verdict = self._decision.judge(logit)
        except DgsNetError as err:
            return Detection.failed(item.path, err)
        return Detection.judged(
            item.path,
            verdict,
            logit=logit,
            threshold=self._decision.threshold,
            backend=self._backend.name,
            engine=self._engine,
            views=len(item.mosaics),
            ms=Timing(item.decode_ms, item.select_ms, infer_ms),
        )


def _unexpected(err: Exception) -> EngineLoadError:
    logger.debug("unexpected error of an engine", exc_info=err)
    reason = kind_and_line(err)
    return EngineLoadError(f"the engine failed in an unexpected way ({reason}); run again with --debug")
