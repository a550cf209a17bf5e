"""The files that a report was asked for in, which never show a run that is not this one.

Before anything is computed each of them says that this run did not finish; what ends the run then says so in
its place. So a report of last week is not taken for one of today, whether the run was refused, killed or cut
off by a power failure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.parity.checks import NOT_RUN, STOPPED, Check
from export.parity.junit import suite_xml
from export.parity.outcome import SCHEMA_VERSION
from export.parity.page.shell import command_line, page, section, verdict_box
from runtime.bundle.manifest import PARITY_FOLDER
from runtime.errors import EXIT_BAD_INPUT, EXIT_ENVIRONMENT, DgsNetError, UsageError, kind_and_line
from runtime.files import write_atomically
from runtime.names import utf8_name

_UNFINISHED = "this run has not come to its end; run it again"


@dataclass(frozen=True)
class Ending:
    """Why there is no report.

    Attributes:
        status: "stopped" or "not-run".
        message: one line.
        code: short name of the kind of error.
        exit_code: what the command returns, None where it has not returned.
    """

    status: str
    message: str
    code: str = "unfinished"
    exit_code: int | None = None

    @classmethod
    def of(cls, err: BaseException) -> Ending:
        """Returns the ending that an error means."""
        if isinstance(err, DgsNetError):
            is_absent = err.exit_code == EXIT_ENVIRONMENT
            return cls(NOT_RUN if is_absent else STOPPED, str(err), err.code, err.exit_code)
        if isinstance(err, ImportError):
            return cls(NOT_RUN, kind_and_line(err), "missing-dependency", EXIT_ENVIRONMENT)
        if isinstance(err, OSError):
            return cls(STOPPED, kind_and_line(err), "file", EXIT_BAD_INPUT)
        if isinstance(err, Exception):
            return cls(STOPPED, kind_and_line(err), "internal", EXIT_BAD_INPUT)
        return cls(STOPPED, _UNFINISHED)


class ReportFiles:
    """Where a report goes.

    Args:
        json_file: for the report as JSON, None for nowhere; likewise the others.
        junit_file: as JUnit XML.
        html_file: as one page.
        command: words of the command line, for whoever wants to see the same again.
        bundles: folders that no report may be put into, because they would open no more.
    """

    def __init__(
        self,
        json_file: Path | None = None,
        junit_file: Path | None = None,
        html_file: Path | None = None,
        command: Sequence[str] = (),
        bundles: Sequence[Path] = (),
    ) -> None:
        self._json, self._junit, self._html = json_file, junit_file, html_file
        self._command = command
        self._bundles = [folder.resolve() for folder in bundles]
        self._is_written = False

    @contextmanager
    def kept_true(self) -> Iterator[None]:
        """Marks the files as unfinished, and by the error that ends the body if no report was written in it.

        Raises:
            UsageError: a file's folder does not exist or is a bundle, what is there is no file that can be
                replaced, or two reports have the same file.
        """
        try:
            given = [path for path in (self._json, self._junit, self._html) if path is not None]
            for path in given:
                if reason := self._obstacle(path):
                    raise UsageError(f"{path}: {reason}")
                if [_place(other) for other in given].count(_place(path)) > 1:
                    raise UsageError(f"{path}: found for two reports, expected a file for each")
            self._end(Ending(STOPPED, _UNFINISHED))
            yield
        except BaseException as err:
            if not self._is_written:
                with suppress(
                    OSError
                ):  # what ended the run is to be told; the files are not green in any case
                    self._end(Ending.of(err))
            raise

    def write(
        self,
        content: Callable[[], dict[str, Any]],
        junit: Callable[[], bytes],
        html: Callable[[], bytes],
    ) -> None:
        """Writes the report; only what was asked for is made.

        Raises:
            OSError: a file cannot be written; those after it say that the run has not come to its end.
        """
        self._is_written = True
        if self._json is not None:
            write_atomically(self._json, (json.dumps(content(), indent=1, allow_nan=False) + "\n").encode())
        if self._junit is not None:
            write_atomically(self._junit, junit())
        if self._html is not None:
            write_atomically(self._html, html())

    def _end(self, ending: Ending) -> None:
        check = Check("parity", "comes to a verdict", ending.status, ending.message)
        content = {
            "schema": SCHEMA_VERSION,
            "status": ending.status,
            "error": {"code": ending.code, "message": utf8_name(ending.message)},
            "exit_code": ending.exit_code,
            "command": [utf8_name(word) for word in self._command],
        }
        made = (
            (self._json, (json.dumps(content, indent=1) + "\n").encode()),
            (self._junit, suite_xml([check], {"status": ending.status})),
            (self._html, self._page(ending)),
        )
        for path, text in made:
            if path is not None and not self._obstacle(path):
                write_atomically(path, text)

    def _obstacle(self, path: Path) -> str:
        """Returns why a report cannot be put there, "" if it can."""
        place = path.resolve()
        if not place.parent.is_dir():
            return "its folder does not exist; make it first"
        if place.exists() and not place.is_file():  # root would put a file in the place of /dev/null
            return "found a folder or a device there, expected a file or nothing; name another"
        for bundle in self._bundles:
            if place.is_relative_to(bundle) and not place.is_relative_to(bundle / PARITY_FOLDER):
                return "lies in the bundle, which then opens no more; move it out"
        return ""

    def _page(self, ending: Ending) -> bytes:
        box = verdict_box("Parity of a bundle", ending.status, [ending.message, "There is no verdict."])
        return page("Parity: no verdict", [box, section("Reproduce", command_line(self._command))])


def _place(path: Path) -> Path:
    """Returns the place that a file takes: of a link the link's own, which is replaced."""
    return path.parent.resolve() / path.name
