"""How a run of ``predict`` is going: failures as they come, progress on the way, one line at the end."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.console import Progress, logger
from runtime.errors import EXIT_BAD_INPUT, EXIT_DONE
from runtime.names import printable_name

if TYPE_CHECKING:
    from runtime.detection import Detection


class Tally:
    """Counts verdicts.

    Args:
        output: the file that they go to, None for standard output.
        shows_progress: whether nothing else says how far the run is.

    Attributes:
        judged: items that were tried, with a verdict or without.
        failed: those of them without.
        skipped: items that the output file held already.
    """

    def __init__(self, output: Path | None, *, shows_progress: bool) -> None:
        self.judged = self.failed = 0
        # The thread that reads the names counts these two, and no other.
        self.skipped = self._skipped_errors = 0
        self._shown_skipped = 0
        self._output = output
        self._labels: Counter[str] = Counter()
        self._uncertain = 0
        self._progress = Progress("predict", None) if shows_progress else None

    @contextmanager
    def progress(self) -> Iterator[None]:
        """The context to judge in."""
        if self._progress is None:
            yield
            return
        with self._progress:
            yield
            self._show_skipped(self._progress)

    def expect(self, count: Callable[[], int]) -> None:
        """Finds out beside the judging how many items will come."""
        progress = self._progress
        if progress is None:
            return

        def find_out() -> None:
            progress.total = count()

        threading.Thread(target=find_out, name="dgsnet-count", daemon=True).start()

    def add(self, detection: Detection) -> None:
        """Counts one item that was tried; its error is printed."""
        self.judged += 1
        if detection.error is not None:
            self.failed += 1
            if self._progress is not None:
                self._progress.clear()
            click.echo(f"error: {detection.error.message}", err=True)
        if detection.label is not None:
            self._labels[detection.label] += 1
            self._uncertain += bool(detection.uncertain)
        if self._progress is not None:
            self._show_skipped(self._progress)
            self._progress.advance()

    def skip(self, *, is_error: bool) -> None:
        """Counts one item that the output file holds, with or without a verdict; from the reading thread."""
        self.skipped += 1
        self._skipped_errors += is_error

    def _show_skipped(self, progress: Progress) -> None:
        count = self.skipped - self._shown_skipped
        self._shown_skipped += count
        progress.skip(count)

    def finish(self) -> int:
        """Says in one line what came of the run, unless it was one item, and returns the exit code."""
        has_failed = bool(self.failed or self._skipped_errors)
        if self.judged + self.skipped > 1 or self._output is not None:
            logger.log(logging.WARNING if has_failed else logging.INFO, self._summary())
        return EXIT_BAD_INPUT if has_failed else EXIT_DONE

    def _summary(self) -> str:
        parts = [f"{self._labels[label]} {label}" for label in ("generated", "real")]
        if self._uncertain:
            parts.append(f"{self._uncertain} of them uncertain")
        parts.append(f"{self.failed} error{'' if self.failed == 1 else 's'}")
        line = f"{self.judged} judged: {', '.join(parts)}"
        if self._output is not None:
            line += f" -> {printable_name(str(self._output))}"
        if self.skipped:
            unread = f", {self._skipped_errors} of them unreadable" if self._skipped_errors else ""
            line += f"; {self.skipped} judged before and skipped{unread}"
        return line
