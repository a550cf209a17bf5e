"""The options of parity that say which pictures are taken, how they are read, and where the report goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from export.parity.pictures.reading import Reading

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, path_type=Path)


def reading_options(command: CommandT) -> CommandT:
    """Adds --max-pictures, --max-unreadable, --allow-truncated, --max-pixels and --max-side to a command."""
    options = (
        click.option(
            "--max-pictures", type=int, help="take so many of --data, of each generator and label its share"
        ),
        click.option(
            "--max-unreadable",
            type=float,
            default=0.0,
            show_default=True,
            help="share of the pictures that may be unreadable",
        ),
        click.option("--allow-truncated", is_flag=True, help="take files that end early; the rest is black"),
        click.option("--max-pixels", type=int, help="refuse larger pictures  [default: 200000000]"),
        click.option("--max-side", type=int, help="refuse longer sides  [default: 65535]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def report_options(command: CommandT) -> CommandT:
    """Adds --json, --json-file, --html-file and --junit-file to a command."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="JSON on standard output"),
        click.option("--json-file", type=_FILE, help="write the report as JSON"),
        click.option("--html-file", type=_FILE, help="write the report as one page"),
        click.option("--junit-file", type=_FILE, help="write the report as JUnit XML"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def reading_of(
    *,
    max_pictures: int | None,
    max_unreadable: float,
    allow_truncated: bool,
    max_pixels: int | None,
    max_side: int | None,
) -> Reading:
    """Returns what the options ask of the pictures.

    Raises:
        UsageError: a number is out of its range.
    """
    from export.parity.pictures.reading import Reading, decode_limits

    limits = decode_limits(max_pixels, max_side, allow_truncated=allow_truncated)
    return Reading(limits, max_unreadable, max_pictures)
