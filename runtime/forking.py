"""What to do after a fork: a child gets a copy of every object and of no thread but the one that forked.

An engine whose threads are missing never answers, and to free it crashes. So what was opened before a fork
refuses to work in the child, and its engine is never freed there. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
from weakref import WeakSet

from runtime.errors import UsageError

_held: WeakSet[object] = WeakSet()


class Owner:
    """The process that opened something: the one that made this object."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def is_this_process(self) -> bool:
        """Whether this is not a child that was forked later."""
        return os.getpid() == self._process

    def check(self, what: str) -> None:
        """Raises UsageError in a child.

        Args:
            what: what was opened, for the message.
        """
        if not self.is_this_process:
            raise UsageError(
                f"{what} was opened in another process ({self._process}), and a fork copies none of its "
                "threads; open the bundle after the fork, in each process that judges"
            )


def keep_in_children(value: object) -> None:
    """Keeps an object alive for ever in the children that are forked while it lives.

    Freed there, a session of ONNX Runtime crashes or hangs for want of its threads, and TensorRT calls a CUDA
    context that a fork breaks.
    """
    _held.add(value)


def _keep() -> None:
    for value in list(_held):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)
