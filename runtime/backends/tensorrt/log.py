"""What TensorRT says: warnings and errors into our log, the last errors kept for the message to the user."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import tensorrt

    class TensorRtLog(tensorrt.ILogger):  # type: ignore[misc]
        """What make_log returns; it exists for mypy alone, as its base is known when the program runs."""

        def take_errors(self) -> str:
            """Returns the last errors since it was asked before, in one line, empty when there were none."""


logger = logging.getLogger("dgsnet.tensorrt")


def make_log(api: tensorrt._Module) -> TensorRtLog:
    """Returns a TensorRT logger that feeds ours and remembers the last errors, from whatever thread."""
    if TYPE_CHECKING:
        base: TypeAlias = TensorRtLog
    else:
        base = api.ILogger

    class Log(base):
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 wants it called by name
            self._errors: deque[str] = deque(maxlen=3)

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            text = " ".join(msg.split())
            if severity in (api.ILogger.ERROR, api.ILogger.INTERNAL_ERROR):
                self._errors.append(text[:300])
                logger.debug("TensorRT error: %s", text)
            elif severity == api.ILogger.WARNING:
                logger.debug("TensorRT warning: %s", text)

        def take_errors(self) -> str:
            said = "; ".join(self._errors.copy())  # other threads may add to it meanwhile
            self._errors.clear()
            return said

    return Log()
