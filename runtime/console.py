"""What every command line of the project shares: error to exit code, logging, progress.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import click

from runtime.errors import EXIT_BAD_INPUT, EXIT_ENVIRONMENT, DgsNetError, kind_and_line
from runtime.names import printable_name

logger = logging.getLogger("dgsnet")

_BAR_COLUMNS = 100


def run_cli(command: click.Command, program: str) -> NoReturn:
    """Runs a click command and exits with the code that the outcome means.

    A ``DgsNetError`` becomes one line on standard error; ``--debug`` anywhere on the line shows the
    traceback instead.
    """
    # Libraries that call logging.warning() on the root logger would otherwise install a handler of their own.
    logging.getLogger().addHandler(logging.NullHandler())
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        # Not command.main(): it turns a closed pipe into exit code 1, which here means that a gate failed.
        with command.make_context(program, arguments) as context:
            code = command.invoke(context)
        if sys.stdout is not None:  # it was closed before the start (>&-)
            sys.stdout.flush()
    except click.exceptions.Exit as err:
        sys.exit(err.exit_code)
    except DgsNetError as err:
        if debug:
            raise
        click.echo(f"error: {err}", err=True)
        sys.exit(err.exit_code)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away (``| head``): nothing is left to say, and nothing went wrong here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ImportError as err:
        if debug:
            raise
        room = program.split()[-1]
        click.echo(f'error: {err}; this command needs pip install "dgsnet[{room}]"', err=True)
        sys.exit(EXIT_ENVIRONMENT)
    except OSError as err:
        if debug:
            raise
        place = f"{printable_name(os.fsdecode(err.filename))}: " if err.filename else ""
        click.echo(
            f"error: {place}{err.strerror or err}; check the path, its permissions and free space", err=True
        )
        sys.exit(EXIT_BAD_INPUT)
    except Exception as err:
        # Exit code 1 means that a gate failed, which a defect of ours must not look like.
        if debug:
            raise
        click.echo(f"error: internal error, {kind_and_line(err)}; run again with --debug", err=True)
        sys.exit(EXIT_BAD_INPUT)
    sys.exit(code if isinstance(code, int) else 0)


def verbosity_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``-v`` and ``-q`` to a command and sets the logging level from them."""

    def set_level(_context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            level = logging.DEBUG if parameter.name == "verbose" else logging.ERROR
            logger.setLevel(level)

    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    for flag, name, text in (("-v", "verbose", "say more"), ("-q", "quiet", "say errors only")):
        command = click.option(
            flag, f"--{name}", name, is_flag=True, expose_value=False, callback=set_level, help=text
        )(command)
    return command


def print_json(value: object) -> None:
    """Writes one JSON value on standard output; NaN is a defect and raises."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


class Progress:
    """A bar on a terminal, a plain line now and then elsewhere, silent under ``-q``.

    Use as a context manager; call ``advance`` as work gets done.

    Attributes:
        total: units of work, None as long as nobody knows; it may be set later.
        done: how many of them are done.
    """

    def __init__(self, title: str, total: int | None, *, start: int = 0, every_seconds: float = 10.0) -> None:
        self.title = title
        self.total = total
        self.done = self._start = start  # work of an earlier process takes no part in the forecast
        self._every = every_seconds
        self._started = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._quiet = logger.level >= logging.ERROR

    def __enter__(self) -> Progress:
        self._draw(note="", final=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None:
            self._draw(note=f"done in {time.monotonic() - self._started:.1f} s", final=True)
        elif self._terminal and not self._quiet:
            click.echo("", err=True)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts ``count`` units of work as done; ``note`` is shown beside the bar."""
        self.done += count
        now = time.monotonic()
        if now - self._said >= (0.1 if self._terminal else self._every):
            self._said = now
            self._draw(note, final=False)

    def skip(self, count: int = 1) -> None:
        """Counts ``count`` units as done by an earlier process: the forecast leaves them out."""
        self.done += count
        self._start += count

    def clear(self) -> None:
        """Empties the bar's line on a terminal, for a message that is about to be printed."""
        if self._terminal and not self._quiet:
            click.echo(f"\r{'':<{_BAR_COLUMNS}}\r", err=True, nl=False)

    def _draw(self, note: str, *, final: bool) -> None:
        if self._quiet:
            return
        elapsed = time.monotonic() - self._started
        fresh, total = self.done - self._start, self.total
        if fresh > 0 and not final:
            forecast = (
                f"{fresh / max(elapsed, 1e-3):.1f} a second"
                if total is None
                else f"{elapsed / fresh * max(total - self.done, 0):.0f} s left"
            )
            note = f"{note} {forecast}".strip()
        count = f"{self.done}" if total is None else f"{self.done}/{total}"
        if self._terminal:
            filled = 0 if total is None else min(24, int(24 * self.done / max(total, 1)))
            bar = "" if total is None else f"[{'#' * filled}{'.' * (24 - filled)}] "
            line = f"\r{self.title} {bar}{count} {note}"
            click.echo(f"{line:<{_BAR_COLUMNS}}", err=True, nl=final)
        elif self.done or final:
            click.echo(f"{self.title}: {count} {note}".rstrip(), err=True)
