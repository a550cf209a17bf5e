"""What TensorRT says while it builds: its log and its progress, from whatever thread it calls."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Any

logger = logging.getLogger("dgsnet.export.engine")


def make_log(api: Any) -> Any:
    """Returns a TensorRT logger that feeds ours and remembers the last errors."""

    class Log(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, msg: str) -> None:
            text = " ".join(msg.split())
            if severity in (api.ILogger.ERROR, api.ILogger.INTERNAL_ERROR):
                self._errors.append(text[:300])
                logger.debug("TensorRT error: %s", text)
            elif severity == api.ILogger.WARNING:
                logger.debug("TensorRT warning: %s", text)

        def last_errors(self) -> str:
            return "; ".join(self._errors)

    return Log()


class PhaseTree:
    """How far a build is: phases nest, and one of n steps done counts as a share of its parent's step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, list[Any]] = {}
        self._furthest = 0.0
        self._cancelled = False
        self.note = ""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Opens a phase of so many steps inside ``parent``."""
        with self._lock:
            self._phases[name] = [parent or None, max(int(steps), 1), 0]
            self.note = name

    def step(self, name: str) -> bool:
        """Counts one step; False tells TensorRT to stop building."""
        with self._lock:
            if name in self._phases:
                self._phases[name][2] += 1
            return not self._cancelled

    def finish(self, name: str) -> None:
        """Closes a phase, whether all of its steps were seen or not."""
        # A root is kept: with it removed the share would fall back to 0.
        with self._lock:
            phase = self._phases.get(name)
            if phase and phase[0] is not None:
                del self._phases[name]

    def cancel(self) -> None:
        """Makes every later step ask TensorRT to stop."""
        with self._lock:
            self._cancelled = True

    def share(self) -> float:
        """Returns the share of the build that is done, 0..1, never less than before."""
        with self._lock:
            roots = [name for name, phase in self._phases.items() if phase[0] not in self._phases]
            if roots:
                self._furthest = max(self._furthest, max(self._share(name) for name in roots))
            return self._furthest

    def _share(self, name: str) -> float:
        _parent, steps, done = self._phases[name]
        inner = max((self._share(k) for k, p in self._phases.items() if p[0] == name), default=0.0)
        return float(min((done + inner) / steps, 1.0))


def make_monitor(api: Any, tree: PhaseTree) -> Any:
    """Returns a TensorRT progress monitor that feeds ``tree``, or None where there is none."""
    base = getattr(api, "IProgressMonitor", None)
    if base is None:
        return None

    class Monitor(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            base.__init__(self)  # type: ignore[misc]  # pybind11 wants it called by name

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tree.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return tree.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)

    return Monitor()
