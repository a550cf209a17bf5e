"""Giving back what was taken, in reverse order, whatever goes wrong on the way."""

from __future__ import annotations

import traceback
from collections.abc import Callable


class Releases:
    """A stack of release calls. A failing one does not keep the rest from running."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], object]] = []

    def add(self, call: Callable[[], object]) -> None:
        """Remembers how to give back what was just taken."""
        self._calls.append(call)

    def close(self) -> None:
        """Gives everything back, last taken first; a second call finds nothing to do.

        Raises:
            Exception: the first failure, after every call was made.
        """
        failure: Exception | None = None
        while self._calls:
            try:
                self._calls.pop()()
            except Exception as err:
                # Bindings free some objects when the last reference goes: the error must not be that one.
                drop_locals(err)
                failure = failure or err
        if failure is not None:
            raise failure


def drop_locals(err: BaseException) -> None:
    """Empties the frames that an exception and its causes passed through, so that it keeps nothing alive.

    An execution context in such a frame would outlive its engine and the CUDA context.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [err]
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            waiting += [link.__cause__, link.__context__]
