"""What there is to show of a gate, with what bisection found and a repair changed beside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import DgsNetError, GateFailedError
from runtime.names import utf8_name

if TYPE_CHECKING:
    from export.parity.bisect.findings import BisectReport
    from export.parity.bisect.trade_off import TradeOff
    from export.parity.outcome import GateReport
    from export.parity.report_files import ReportFiles


@dataclass(frozen=True)
class Shown:
    """The gate, and where asked for what bisection found and what a repair changed.

    Attributes:
        report: of the gate; after a repair that of the repaired bundle.
        found: by bisection, None where nobody asked.
        trade_off: of a repair, None where there was none.
        not_repaired: why a repair that was asked for is none, "" otherwise.
    """

    report: GateReport
    found: BisectReport | None
    trade_off: TradeOff | None
    not_repaired: str

    def content(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        content = self.report.to_json()
        if self.found is not None:
            content["bisect"] = self.found.to_json()
        if self.trade_off is not None:
            content["repair"] = self.trade_off.to_json()
        elif self.not_repaired:
            content["repair"] = {"status": "not-repaired", "reason": utf8_name(self.not_repaired)}
        return content

    def lines(self) -> list[str]:
        """Returns the report for a terminal."""
        if self.found is None:
            return self.report.lines()
        if self.trade_off is None:
            return [*self.report.lines(), *self.found.lines()]
        before = ["before the repair:", *self.found.lines()]
        return [*before, *self.trade_off.lines(), "the repaired bundle:", *self.report.lines()]

    def where(self) -> list[str]:
        """Returns the page's lines on the place; after a repair they say what was repaired."""
        if self.found is None:
            return []
        if self.trade_off is None:
            return self.found.lines()
        return [*self.trade_off.lines(), "before the repair:", *self.found.lines()]

    def checked(self) -> GateReport:
        """Returns the gate with what was found as checks of its own; a repaired bundle has no such place."""
        if self.found is None or self.trade_off is not None:
            return self.report
        return dataclasses.replace(self.report, checks=(*self.report.checks, *self.found.checks()))

    def write(self, files: ReportFiles) -> None:
        """Writes the report where it was asked for."""
        from export.parity.junit import junit_xml
        from export.parity.page.document import html_page

        is_still_so = self.trade_off is None
        rows = self.found.page_rows() if self.found is not None and is_still_so else []
        files.write(
            self.content,
            lambda: junit_xml(self.checked()),
            lambda: html_page(self.report, rows, self.where()),
        )


def with_stop(report: GateReport, hop: str, err: DgsNetError) -> GateReport:
    """Returns a report that is no pass, because what was asked for beside it did not come to its end.

    A gate that failed says so already, and that there is nothing to repair it with is no news about it.
    """
    from export.parity.ending import stopped_check

    if isinstance(err, GateFailedError):
        return report
    return dataclasses.replace(report, checks=(*report.checks, stopped_check(hop, err)))
