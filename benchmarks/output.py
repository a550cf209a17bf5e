"""What every benchmark does with what it found: JSON on standard output, in a file, or neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from runtime.console import print_json
from runtime.files import write_atomically

T = TypeVar("T", bound=Callable[..., Any])


def output_options(command: T) -> T:
    """Adds ``--json`` and ``--json-file``, which arrive as ``as_json`` and ``json_file``."""
    to_file = click.option(
        "--json-file", type=click.Path(dir_okay=False, path_type=Path), help="writes the JSON here too"
    )
    return click.option("--json", "as_json", is_flag=True, help="JSON on standard output")(to_file(command))


def write_output(found: object, *, as_json: bool, json_file: Path | None) -> None:
    """Writes what was found, a JSON value, to where it was asked for.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
    if as_json:
        print_json(found)
