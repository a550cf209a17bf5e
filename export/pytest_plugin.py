"""The pytest plugin of dgsnet: a fixture with which a test says that an engine judges as its model.

    def test_engine(assert_parity):
        assert_parity("bundle", "run", "data/test")

Importing this module loads nothing but pytest, which imports it in every run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing import TypeAlias

    from export.parity.gate import GateOptions
    from export.parity.outcome import GateReport

    AnyPath: TypeAlias = str | os.PathLike[str]

_SHOWN = 10
# Messages name the flags of a command line; where the argument here is not the flag's name, it stands here.
_FLAG = re.compile(r"--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")
_NAMES = {"backend": "backends"}


class AssertParity:
    """What the fixture gives."""

    def __call__(
        self,
        bundle: AnyPath,
        checkpoint: AnyPath | None = None,
        data: AnyPath | None = None,
        *,
        backends: str | Iterable[str] = (),
        batch_size: int = 16,
        require_all: bool = False,
        max_abs_logit: float | None = None,
        max_abs_logit_fp32: float | None = None,
        max_hard_flips: int = 0,
        max_ap_drop: float | None = None,
        max_flip_bound: float | None = None,
        max_pictures: int | None = None,
        max_unreadable: float = 0.0,
        allow_truncated: bool = False,
        max_pixels: int | None = None,
        max_side: int | None = None,
        json_file: AnyPath | None = None,
        junit_file: AnyPath | None = None,
        html_file: AnyPath | None = None,
    ) -> GateReport:
        """Fails the test, with a few lines and no traceback, unless the gate passes; returns its report.

        What keeps the gate from being run fails the test too: bad input, and a backend that was asked for by
        name and is not here.

        Args:
            bundle: the bundle's folder.
            checkpoint: the run that it was made from; None begins the chain with its FP32 graph.
            data: folder of pictures; None takes the golden mosaics.
            backends: engines that must run, also as one text with commas; empty takes each that runs here.
            batch_size: pictures at a time.
            require_all: whether a form that cannot run here fails the test.
            max_abs_logit: limit of |difference of logits| in FP16; None for this version's own.
            max_abs_logit_fp32: the same between FP32 forms.
            max_hard_flips: verdicts that may change.
            max_ap_drop: average precision that may be lost; None for this version's own.
            max_flip_bound: largest 95 % bound of the rate of flips; None does not gate it.
            max_pictures: take so many of ``data``, of each generator and label its share.
            max_unreadable: share of the pictures that may be unreadable.
            allow_truncated: take files that end early; the rest is black.
            max_pixels: refuse larger pictures; None for the runtime's limit.
            max_side: refuse longer sides; None for the runtime's limit.
            json_file: where to write the report as JSON, whatever the outcome.
            junit_file: the same as JUnit XML.
            html_file: the same as a page.
        """
        __tracebackhide__ = True
        from runtime.errors import DgsNetError

        limits: dict[str, float | int | None] = {
            "max_abs_logit": max_abs_logit,
            "max_abs_logit_fp32": max_abs_logit_fp32,
            "max_hard_flips": max_hard_flips,
            "max_ap_drop": max_ap_drop,
            "max_flip_bound": max_flip_bound,
        }
        paths = (_path(bundle), _path(checkpoint), _path(data))
        files = (_path(json_file), _path(junit_file), _path(html_file))

        def options() -> GateOptions:
            from export.parity.gate import GateOptions
            from export.parity.pictures.reading import Reading, decode_limits

            return GateOptions(
                backends=_names(backends),
                batch=batch_size,
                require_all=require_all,
                reading=Reading(
                    decode_limits(max_pixels, max_side, allow_truncated=allow_truncated),
                    max_unreadable,
                    max_pictures,
                ),
            )

        report: GateReport | None
        try:
            report = _gate(paths, files, limits, options)
        except DgsNetError as err:
            report, lines = None, [str(err)]
        if report is not None:
            if report.passed:
                return report
            lines = [report.verdict(), *(check.line() for check in report.not_passed[:_SHOWN])]
        # Outside of the except block: pytest would print the error that it handles as well.
        pytest.fail(_as_arguments("\n".join(lines)), pytrace=False)


_assert_parity = AssertParity()


@pytest.fixture(scope="session")
def assert_parity() -> AssertParity:
    """Compares a bundle with the checkpoint it was made from; see ``AssertParity``."""
    return _assert_parity


def _gate(
    paths: tuple[Path | None, ...],
    files: tuple[Path | None, Path | None, Path | None],
    limits: dict[str, float | int | None],
    options: Callable[[], GateOptions],
) -> GateReport:
    from export.checkpoint import CheckpointSource
    from export.parity.gate import bundle_gate
    from export.parity.junit import junit_xml
    from export.parity.page.document import html_page
    from export.parity.report_files import ReportFiles

    bundle, checkpoint, data = paths
    written = ReportFiles(*files, bundles=[bundle or Path()])
    with written.kept_true():
        source = None if checkpoint is None else CheckpointSource(checkpoint)
        report = bundle_gate(bundle or Path(), source, data, limits=limits, options=options())
        written.write(report.to_json, lambda: junit_xml(report), lambda: html_page(report))
    return report


def _path(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)


def _names(backends: str | Iterable[str]) -> tuple[str, ...]:
    words = backends.split(",") if isinstance(backends, str) else backends
    return tuple(word.strip() for word in words if word.strip())


def _as_arguments(text: str) -> str:
    """Returns a message with the arguments of the fixture where it names flags of the command."""

    def argument(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        name = _NAMES.get(name, name)
        return name if name in AssertParity.__call__.__annotations__ else found[0]

    return _FLAG.sub(argument, text)
