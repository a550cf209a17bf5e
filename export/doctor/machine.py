"""What doctor may ask of a machine: files, installed packages, free space, and what a child process answers.

Tests give another machine by overriding these methods.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from export.doctor.child import ask_child
from runtime.cache import cache_folder
from runtime.machine import usable_cpus

_TEXT_BYTES = 64 << 20


class Machine:
    """The machine that this process runs on.

    Args:
        root: where the file system starts; another folder than ``/`` in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def text(self, name: str) -> str | None:
        """Returns what a system file holds, None when it does not exist.

        Raises:
            OSError: it exists and cannot be read.
        """
        try:
            with (self._root / name.lstrip("/")).open("rb") as stream:
                return stream.read(_TEXT_BYTES).decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    @functools.cached_property
    def distributions(self) -> dict[str, str]:
        """Installed distributions: normalised name to version, the one that an import would find first."""
        found: dict[str, str] = {}
        for distribution in metadata.distributions():
            # A distribution whose metadata is damaged has neither; it is no reason to lose the others.
            name, version = distribution.metadata["Name"], distribution.metadata["Version"]
            if name and version:
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), str(version))
        return found

    def module_folder(self, module: str) -> Path | None:
        """Returns the folder of the package that ``import module`` would load, without loading it."""
        spec = importlib.util.find_spec(module)
        return Path(spec.origin).parent if spec is not None and spec.origin else None

    def platform(self) -> dict[str, Any]:
        """Returns system, architecture, kernel release and the number of usable CPU cores."""
        return {
            "system": platform.system(),
            "arch": platform.machine(),
            "release": platform.release(),
            "cores": usable_cpus(),
        }

    def python(self) -> dict[str, Any]:
        """Returns version, implementation, and whether this is a virtual environment that sees the system."""
        is_venv = sys.prefix != sys.base_prefix
        settings = Path(sys.prefix, "pyvenv.cfg")
        text = settings.read_text(encoding="utf-8", errors="replace") if is_venv else ""
        return {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "virtual_environment": is_venv,
            "system_site_packages": not is_venv or "include-system-site-packages = true" in text.lower(),
        }

    def folders(self) -> dict[str, Path]:
        """Returns the folders whose free space matters: the cache and the working directory."""
        return {"cache": cache_folder(), "working directory": Path.cwd()}

    def disk(self, folder: Path) -> dict[str, Any]:
        """Returns free and total bytes of the file system that holds a folder, or would hold it."""
        existing = folder.absolute()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        usage = shutil.disk_usage(existing)
        writable = os.access(existing, os.W_OK | os.X_OK)
        return {"free_bytes": usage.free, "total_bytes": usage.total, "writable": writable}

    def ask(self, question: str) -> dict[str, Any]:
        """Returns the answer of ``export/doctor/answers.py``, given by a child process.

        Raises:
            ProbeError: the child crashed, took too long or failed.
        """
        if question not in self._answers:
            self._answers[question] = ask_child("export.doctor.answers", question)
        return self._answers[question]

    @functools.cached_property
    def _answers(self) -> dict[str, dict[str, Any]]:
        return {}
