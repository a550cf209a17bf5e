"""One step of a build in a process of its own: its memory is gone when the next step starts.

The child ends with its parent, however that ends, and a child that is killed is an error of one line here.
Requests and answers are pickled: both ends of the pipe are this program, and neither reads a file.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any, NoReturn, TypeVar

from export.python_child import python_command, signal_name
from runtime.errors import DgsNetError, EngineBuildError

logger = logging.getLogger("dgsnet")

T = TypeVar("T")

_CHILD = "from export.steps.child import answer_parent; answer_parent()"
# The child's first byte: from then on an interrupt ends it in order; before, Python dies of one with a trace.
_READY = b"R"
_PATIENCE_SECONDS = 10.0
_INTERRUPTED = 130


class _InChild(Exception):
    """Carries the child's traceback, as the cause of the exception that is raised again here."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def run_in_child(title: str, work: Callable[..., T], *arguments: object) -> T:
    """Returns ``work(*arguments)``, computed in a new process.

    Args:
        title: what the step is, for the message when its process dies.
        work: a function at the top level of a module; it and everything given and returned is pickled.
        arguments: its arguments.

    Raises:
        EngineBuildError: the process was killed, crashed or ran out of memory.
        Exception: whatever ``work`` raised, with the child's traceback as its cause.
    """
    request = pickle.dumps((logger.level, work, arguments))
    # In a session of its own a Ctrl-C of the terminal reaches us alone, and the child through us, once.
    process = subprocess.Popen(
        python_command(_CHILD),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    is_ready = False
    try:
        is_ready = process.stdout.read(1) == _READY
        answer = _exchange(process, request) if is_ready else b""
        code = process.wait()
    except BaseException:
        _stop(process, is_ready=is_ready)
        raise
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
    if not answer:
        raise EngineBuildError(f"{title}: {_ending(code)}; nothing was published")
    value, error, trace = pickle.loads(answer)
    if error is None:
        return value  # type: ignore[no-any-return]
    if isinstance(error, MemoryError):
        raise EngineBuildError(f"{title}: memory ran out; free some and run again") from _InChild(trace)
    raise error from _InChild(trace)


def answer_parent() -> NoReturn:
    """Computes what the parent asks for and ends this process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up inside the answer
    try:
        answers.write(_READY)
        answers.flush()
        # Unbuffered: the thread reads the same descriptor, and must see its end and nothing else.
        stream = os.fdopen(0, "rb", buffering=0, closefd=False)
        length = int.from_bytes(_read_exactly(stream, 8), "big")
        level, work, arguments = pickle.loads(_read_exactly(stream, length))
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _log_like_parent(level)
        answer: tuple[object, Exception | None, str]
        try:
            answer = (work(*arguments), None, "")
        except Exception as err:
            answer = (None, _sendable(err), traceback.format_exc())
        answers.write(pickle.dumps(answer))
        answers.flush()
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)
    except BrokenPipeError:
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    # A library may crash while it is being unloaded, which would take nothing back.
    os._exit(0)


def _exchange(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(len(request).to_bytes(8, "big") + request)
        # Left open: its end is how the child learns that we are gone.
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    return process.stdout.read()


def _stop(process: subprocess.Popen[bytes], *, is_ready: bool) -> None:
    """Asks the child to stop, so that it removes what it began outside the build's folder, or kills it."""
    try:
        process.send_signal(signal.SIGINT if is_ready else signal.SIGKILL)
        process.wait(_PATIENCE_SECONDS)
    except BaseException:
        process.kill()
        process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with {code} and gave no answer; run again with -v"
    name = signal_name(code)
    if name == "SIGKILL":
        return "its process was ended by SIGKILL, as the system does when memory runs out; free some"
    return f"its process was ended by {name}, a crash inside a library; run again with -v"


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def _log_like_parent(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level or logging.INFO)
    logger.propagate = False
    # Libraries that call logging.warning() on the root logger would otherwise install a handler of their own.
    logging.getLogger().addHandler(logging.NullHandler())


def _sendable(error: Exception) -> Exception:
    """Returns an exception that the parent can read: ours, Python's own, or one that says what it was."""
    if isinstance(error, (DgsNetError, OSError, ImportError, MemoryError)):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            logger.debug("%s cannot be pickled", type(error).__name__)
        else:
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _read_exactly(stream: IO[bytes] | Any, count: int) -> bytes:
    parts = []
    while count:
        part = stream.read(count)
        if not part:
            raise BrokenPipeError("the parent is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
