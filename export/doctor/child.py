"""Questions to a child process: a broken driver or module ends the process that loads it, not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from export.python_child import python_command, signal_name
from runtime.errors import kind_and_line

_TIMEOUT_SECONDS = 180
_CHILD = "import importlib, sys; importlib.import_module(sys.argv[1]).main(sys.argv[2])"


class ProbeError(Exception):
    """Something about the machine could not be read; the message is one line that says why."""


def ask_child(module: str, argument: str, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> dict[str, Any]:
    """Returns what ``main(argument)`` of a module answers in a process of its own.

    Args:
        module: its ``main`` calls ``answer_with``.
        argument: passed on as it is.
        timeout_seconds: after which the child is killed.

    Raises:
        ProbeError: the child crashed, took too long or failed.
    """
    command = python_command(_CHILD, module, argument)
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise ProbeError(f"no answer in {timeout_seconds:g} s") from err
    except OSError as err:
        raise ProbeError(f"no process could be started: {err.strerror}") from err
    if done.returncode < 0:
        raise ProbeError(f"the process that tried it was ended by {signal_name(done.returncode)}")
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError) as err:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[-200:]
        raise ProbeError(f"the process that tried it ended with {done.returncode}: {said}") from err
    if "failed" in answer:
        raise ProbeError(answer["failed"])
    return dict(answer)


def answer_with(work: Callable[[], dict[str, Any]]) -> None:
    """Ends this process with an answer for ``ask_child``; an exception becomes its reason."""
    try:
        answer = work()
    except Exception as err:
        answer = {"failed": kind_and_line(err)}
    # A library may have left half a line behind, and may crash while it is being unloaded.
    sys.stdout.write("\n" + json.dumps(answer, allow_nan=False) + "\n")
    sys.stdout.flush()
    os._exit(0)
