"""The pytest plugin of dgsnet: a fixture with which a test says that an engine judges as its model.

    def test_engine(assert_parity):
        assert_parity("bundle", "run", "data/test")

Importing this module loads nothing but pytest, which imports it in every run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from export.parity.outcome import GateReport

_SHOWN = 10


class AssertParity(Protocol):
    """What the fixture gives."""

    def __call__(
        self,
        bundle: str | os.PathLike[str],
        checkpoint: str | os.PathLike[str] | None = None,
        data: str | os.PathLike[str] | None = None,
        *,
        backends: tuple[str, ...] = (),
        batch_size: int = 16,
        require_all: bool = False,
        html_file: str | os.PathLike[str] | None = None,
        **limits: float | int | None,
    ) -> GateReport:
        """Fails the test when a check of the gate fails; returns the report when none does.

        Args:
            bundle: the bundle's folder.
            checkpoint: the run that it was made from; None begins the chain with its FP32 graph.
            data: folder of pictures; None takes the golden mosaics.
            backends: engines that must run; empty takes each one that runs here.
            batch_size: pictures at a time.
            require_all: whether a form that cannot run here fails the test.
            html_file: where to write the report page, whatever the outcome.
            **limits: max_abs_logit, max_abs_logit_fp32, max_hard_flips, max_ap_drop, max_flip_bound.

        Raises:
            DgsNetError: bad input, or what was asked for by name cannot run here.
        """


@pytest.fixture(scope="session")
def assert_parity() -> AssertParity:
    """Compares a bundle with the checkpoint it was made from; see ``AssertParity``."""
    return _assert_parity


def _assert_parity(
    bundle: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    *,
    backends: tuple[str, ...] = (),
    batch_size: int = 16,
    require_all: bool = False,
    html_file: str | os.PathLike[str] | None = None,
    **limits: float | int | None,
) -> GateReport:
    __tracebackhide__ = True
    from export.checkpoint import CheckpointSource
    from export.parity.gate import GateOptions, bundle_gate, require_all_ran

    source = None if checkpoint is None else CheckpointSource(Path(checkpoint))
    report = bundle_gate(
        Path(bundle),
        source,
        None if data is None else Path(data),
        limits=limits,
        options=GateOptions(backends=backends, batch=batch_size),
    )
    if html_file is not None:
        from export.parity.page.document import html_page
        from runtime.files import write_atomically

        write_atomically(Path(html_file), html_page(report))
    if not report.passed:
        lines = [check.line() for check in report.failed[:_SHOWN]]
        pytest.fail("\n".join([report.verdict(), *lines]), pytrace=False)
    if require_all:
        require_all_ran(report)
    return report
