"""What the figures of a benchmark depend on: the machine, the versions, and who else was busy."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

from export.versions import tool_versions
from runtime.machine import installed_version

# With more of the machine than this in other hands, wall times say little.
BUSY_SHARE = 0.05


def machine_facts() -> dict[str, Any]:
    """Returns date, machine, Python and the versions of what takes part, as JSON values."""
    versions = tool_versions()
    # It builds nothing of ours, and so is no tool; it is a contestant.
    openvino = installed_version("openvino")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions | ({"openvino": openvino} if openvino else {}),
    }


def busy_warning(others: float | None) -> str | None:
    """Returns a line where other processes had so much of the machine that wall times mean little.

    Args:
        others: their share of the machine; None where the system does not say.
    """
    if others is None or others <= BUSY_SHARE:
        return None
    return f"other processes had {others:.0%} of this machine: trust the CPU ratio, not the wall times"
