"""How far TensorRT is with a build, as it says from whatever thread it calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsInt, TypeAlias

if TYPE_CHECKING:
    import tensorrt


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """How far a build is: phases nest, and one of n steps done counts as a share of its parent's step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._furthest = 0.0
        self._cancelled = False
        self.note = ""

    def start(self, name: str, parent: str | None, steps: SupportsInt) -> None:
        """Opens a phase of so many steps inside ``parent``."""
        with self._lock:
            self._phases[name] = _Phase(parent or None, max(int(steps), 1))
            self.note = name

    def step(self, name: str) -> bool:
        """Counts one step; False tells TensorRT to stop building."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done += 1
            return not self._cancelled

    def finish(self, name: str) -> None:
        """Closes a phase, whether all of its steps were seen or not."""
        # A root is kept: with it removed the share would fall back to 0.
        with self._lock:
            phase = self._phases.get(name)
            if phase and phase.parent is not None:
                del self._phases[name]

    def cancel(self) -> None:
        """Makes every later step ask TensorRT to stop."""
        with self._lock:
            self._cancelled = True

    def share(self) -> float:
        """Returns the share of the build that is done, 0..1, never less than before."""
        with self._lock:
            roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
            if roots:
                self._furthest = max(self._furthest, max(self._share(name) for name in roots))
            return self._furthest

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = max((self._share(k) for k, p in self._phases.items() if p.parent == name), default=0.0)
        return min((phase.done + inner) / phase.steps, 1.0)


def make_monitor(api: tensorrt._Module, tree: PhaseTree) -> tensorrt.IProgressMonitor:
    """Returns a TensorRT progress monitor that feeds ``tree``."""
    if TYPE_CHECKING:
        base: TypeAlias = tensorrt.IProgressMonitor
    else:
        base = api.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            tree.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            return tree.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)

    return Monitor()
