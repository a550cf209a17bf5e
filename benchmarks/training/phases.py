"""Where the time of a step goes: functions are wrapped for a while, and each is charged for itself alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

REST = "student"


class Phases:
    """Seconds by phase, on one thread; what no wrapped function does belongs to ``REST``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def watching(self, targets: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Inside, time is charged to phases.

        Args:
            targets: (module or class, name of a function in it, phase). Besides, whatever is registered as a
                hook of a tensor is charged to "surgery".
        """
        register: Any = torch.Tensor.register_hook

        def register_timed(tensor: torch.Tensor, hook: Callable[..., Any]) -> Any:
            return register(tensor, self._timed(hook, "surgery"))

        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in targets]
        for owner, name, phase in targets:
            setattr(owner, name, self._timed(getattr(owner, name), phase))
        torch.Tensor.register_hook = register_timed  # type: ignore[method-assign]
        self._enter(REST)
        try:
            yield
        finally:
            self._leave()
            torch.Tensor.register_hook = register  # type: ignore[method-assign]
            for owner, name, function in originals:
                setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self._enter(phase)
            try:
                return function(*arguments, **named)
            finally:
                self._leave()

        return timed

    def _enter(self, phase: str) -> None:
        self._charge()
        self._open.append(phase)

    def _leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now
