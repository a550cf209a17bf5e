"""Ctrl-C and SIGTERM during training: the step is finished, the state saved, and then the run stops."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from train.loop.ranks import Ranks

logger = logging.getLogger("dgsnet")


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.is_requested = False


@contextmanager
def stop_requests(ranks: Ranks) -> Iterator[StopRequest]:
    """Inside, the first SIGINT or SIGTERM is noted, and a second one ends the process at once.

    Under torchrun signals keep their usual meaning: processes that stop at different steps would wait for
    each other, and torchrun ends them anyway. The last saved state is what is left then.

    Args:
        ranks: the processes.
    """
    request = StopRequest()
    if ranks.count > 1 or threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request.is_requested:
            raise KeyboardInterrupt
        request.is_requested = True
        logger.warning("stopping after this step (%s); again to stop at once", signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    except RuntimeError as err:
        # A SIGTERM to the whole group ends the workers too, and the step cannot be finished.
        if not request.is_requested or "DataLoader worker" not in str(err):
            raise
        logger.warning("stopped; --resume goes on from the last saved state")
        raise KeyboardInterrupt from err
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
