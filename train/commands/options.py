"""Options that several commands of ``python -m train`` take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from runtime.errors import UsageError


def _checked_share(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:  # a click range lets nan pass
        raise UsageError(f"--max-corrupt: found {value}, expected 0 to 1")
    return value


_SCORING_OPTIONS = (
    click.option("--device", default="cpu", show_default=True, help="cpu or cuda"),
    click.option(
        "--batch", type=click.IntRange(min=1), help="pictures the model sees at once; default RUN's own"
    ),
    click.option(
        "--max-corrupt",
        type=float,
        callback=_checked_share,
        help="share of unreadable pictures that does not stop it; default RUN's data.max_corrupt",
    ),
)


def scoring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how a run scores pictures."""
    for option in reversed(_SCORING_OPTIONS):
        command = option(command)
    return command
