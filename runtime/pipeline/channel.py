"""A bounded queue between two threads that either side can close. Standard library only.

queue.Queue has no way to wake a blocked put before Python 3.13, which an abandoned stream needs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class ChannelClosed(Exception):
    """The other side closed the channel."""


class Channel(Generic[T]):
    """Hands values from one thread to another in order, holding at most ``capacity`` of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: deque[T] = deque()
        self._condition = threading.Condition()
        self._closed = False

    def put(self, value: T) -> None:
        """Appends a value, waiting while the channel is full.

        Raises:
            ChannelClosed: it was closed before there was room.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._closed or len(self._values) < self._capacity)
            if self._closed:
                raise ChannelClosed
            self._values.append(value)
            self._condition.notify_all()

    def get(self, deadline: float | None = None) -> T | None:
        """Takes the oldest value, waiting for one until ``deadline`` (of ``time.monotonic``), None for ever.

        Returns:
            The value, or None when the deadline passed.

        Raises:
            ChannelClosed: it was closed.
        """
        with self._condition:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._condition.wait_for(lambda: self._closed or bool(self._values), wait)
            if self._closed:
                raise ChannelClosed
            if not self._values:
                return None
            value = self._values.popleft()
            self._condition.notify_all()
            return value

    def close(self) -> list[T]:
        """Wakes both sides for good; returns what was not taken."""
        with self._condition:
            self._closed = True
            left = list(self._values)
            self._values.clear()
            self._condition.notify_all()
            return left
