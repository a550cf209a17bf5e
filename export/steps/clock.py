"""How long each step of a build took, and which of them only check numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One step that ran.

    Attributes:
        name: what it did.
        started: seconds on the system's monotonic clock, which all processes share.
        seconds: of wall time.
        is_numeric: whether it compares numbers, rather than making or checking a file.
    """

    name: str
    started: float
    seconds: float
    is_numeric: bool


class PhaseClock:
    """Collects phases in the order in which they end."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []

    @contextmanager
    def phase(self, name: str, *, is_numeric: bool = False) -> Iterator[None]:
        """Times what runs inside; a phase that fails is not kept."""
        started = time.monotonic()
        yield
        self.phases.append(Phase(name, started, time.monotonic() - started, is_numeric))
