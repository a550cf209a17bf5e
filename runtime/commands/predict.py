"""``predict``: verdicts on files, folders and names from standard input."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from runtime.commands.options import BUNDLE, engine_options
from runtime.console import logger, print_json, verbosity_option
from runtime.errors import EXIT_BAD_INPUT, EXIT_DONE, UsageError
from runtime.names import printable_name

if TYPE_CHECKING:
    from runtime.detection import Detection

_CSV_COLUMNS = (
    "path", "label", "probability", "logit", "threshold", "margin", "uncertain", "backend", "engine", "views",
    "decode_ms", "select_ms", "infer_ms", "error_code", "error_message",
)  # fmt: skip


@click.command()
@BUNDLE
@click.argument("paths", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.option("--csv", "as_csv", is_flag=True, help="comma-separated values with a header")
@engine_options
@click.option("--no-selftest", is_flag=True, help="skip the two golden images that are checked first")
@click.option("--no-recursive", is_flag=True, help="do not enter folders inside folders")
@click.option("-0", "--null", "nul", is_flag=True, help="names on standard input end with NUL")
@click.option("--batch-size", type=click.IntRange(min=1), help="pictures per run [default: as built]")
@click.option("--max-pixels", type=click.IntRange(min=1), help="refuse larger pictures [default: 200000000]")
@verbosity_option
def predict(
    bundle: str,
    paths: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
    no_selftest: bool,
    no_recursive: bool,
    nul: bool,
    max_pixels: int | None,
    **options: Any,
) -> int:
    """Judge pictures: PATHS are files, folders, or - for names on standard input.

    Exits with 2 when any picture could not be judged; the others still get their verdicts.
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other; give one of them")
    from runtime.decode import MAX_PIXELS
    from runtime.detector import Detector
    from runtime.scan import expand_paths

    show = _show_json if as_json else _csv_writer() if as_csv else _table_writer()
    count = failed = 0
    with Detector.open(
        bundle, selftest=not no_selftest, max_pixels=max_pixels or MAX_PIXELS, **options
    ) as detector:
        stdin = sys.stdin.buffer if "-" in paths else None
        names = expand_paths(paths, recursive=not no_recursive, names=stdin, nul=nul)
        for detection in detector.stream(names):
            count += 1
            if detection.error is not None:
                failed += 1
                click.echo(f"error: {detection.error.message}", err=True)
            show(detection)
    if count == 0:
        raise UsageError("no pictures found; check the paths and the suffixes of the files")
    if failed:
        logger.warning("%d of %d pictures could not be judged", failed, count)
    return EXIT_BAD_INPUT if failed else EXIT_DONE


def _show_json(detection: Detection) -> None:
    print_json(detection.to_json())


def _table_writer() -> Callable[[Detection], None]:
    header = f"{'verdict':<11}{'p(gen.)':>8}{'margin':>10}  picture"

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


def _csv_writer() -> Callable[[Detection], None]:
    click.echo(",".join(_CSV_COLUMNS))

    def show(detection: Detection) -> None:
        row = detection.to_json()
        for part, names in (("ms", ("decode", "select", "infer")), ("error", ("code", "message"))):
            values = row.pop(part) or {}
            for name in names:
                column = f"{name}_ms" if part == "ms" else f"error_{name}"
                row[column] = values.get(name)
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([row[column] for column in _CSV_COLUMNS])
        click.echo(line.getvalue())

    return show
