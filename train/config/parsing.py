"""Texts of a command line and values of a file, as the types that settings have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from runtime.errors import UsageError


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file.

    Raises:
        UsageError: it cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(f"{path}: cannot be read as TOML ({err})") from err


def flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Returns nested settings as (dotted key, value) pairs, in their order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def typed(key: str, default: object, value: object) -> object:
    """Returns ``value`` as the type of ``default``, reading texts as a command line gives them.

    Raises:
        UsageError: it has another type.
    """
    try:
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else value
            if not isinstance(parts, (list, tuple)):
                raise ValueError
            return tuple(_scalar(default[0], part) for part in parts)
        return _scalar(default, value)
    except (KeyError, ValueError, TypeError, OverflowError) as err:
        wanted = "text" if isinstance(default, str) else type(default).__name__
        shown = list(default) if isinstance(default, tuple) else default
        raise UsageError(f"setting {key}: found {value!r}, expected {wanted} such as {shown!r}") from err


def _scalar(default: object, value: object) -> object:
    if isinstance(default, bool):
        return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
    if isinstance(default, (int, float)):
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        if isinstance(default, float):
            return float(value)
        if isinstance(value, str):
            return int(value) if value.strip().lstrip("+-").isdigit() else _whole(float(value))
        return _whole(value)
    if not isinstance(value, str):
        raise ValueError
    return value


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)
