"""Starting this Python a second time, and saying which signal ended it."""

from __future__ import annotations

import json
import os
import signal
import sys

_SEE_OUR_PACKAGES = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "


def python_command(code: str, *arguments: str) -> list[str]:
    """Returns the command line of a Python that runs ``code``; ``sys.argv[1:]`` there are the arguments.

    The child sees the packages that we see, and none that lie in its working directory alone.
    """
    path = json.dumps([os.path.abspath(entry) for entry in sys.path])
    return [sys.executable, "-c", _SEE_OUR_PACKAGES + code, path, *arguments]


def signal_name(returncode: int) -> str:
    """Returns the name of the signal that ended a process, such as "SIGKILL"; ``returncode`` is negative."""
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
