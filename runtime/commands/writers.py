"""How ``predict`` shows verdicts on standard output: a table, JSON lines or CSV, one row as each comes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from runtime.console import print_json
from runtime.names import printable_name

if TYPE_CHECKING:
    from runtime.detection import Detection

_CSV_COLUMNS = (
    "path", "label", "probability", "logit", "threshold", "margin", "uncertain", "backend", "engine", "views",
    "decode_ms", "select_ms", "infer_ms", "error_code", "error_message",
)  # fmt: skip


def show_json(detection: Detection) -> None:
    """Prints one JSON object on one line."""
    print_json(detection.to_json())


def show_nothing(_detection: Detection) -> None:
    """Prints nothing: the verdicts go to a file."""


def table_writer(threshold: float) -> Callable[[Detection], None]:
    """Returns what prints one row of a table; the header, with the threshold, comes before the first."""
    header = f"{'verdict':<11}{'p(gen.)':>8}{'margin':>10}  picture (threshold {threshold:.4g})"

    def show(detection: Detection) -> None:
        nonlocal header
        if header:
            click.echo(header)
            header = ""
        # The path stands last, because rows are printed as they come and its width is not known before.
        path = printable_name(detection.path or "")
        if detection.label is None or detection.probability is None or detection.margin is None:
            click.echo(f"{'error':<11}{'-':>8}{'-':>10}  {path}")
            return
        label = detection.label + (" ?" if detection.uncertain else "")
        click.echo(f"{label:<11}{detection.probability:>8.4f}{detection.margin:>+10.3f}  {path}")

    return show


def csv_writer() -> Callable[[Detection], None]:
    """Returns what prints one row; the header comes before the first."""
    header = ",".join(_CSV_COLUMNS)

    def show(detection: Detection) -> None:
        nonlocal header
        if header:
            click.echo(header)
            header = ""
        row: dict[str, Any] = detection.to_json()
        for part, names in (("ms", ("decode", "select", "infer")), ("error", ("code", "message"))):
            values = row.pop(part) or {}
            for name in names:
                column = f"{name}_ms" if part == "ms" else f"error_{name}"
                row[column] = values.get(name)
        line = io.StringIO()
        # Its default end of line, cut off: before Python 3.13 a line break inside a name is quoted only if it
        # is among the characters of the terminator.
        csv.writer(line).writerow([row[column] for column in _CSV_COLUMNS])
        click.echo(line.getvalue().removesuffix("\r\n"))

    return show
