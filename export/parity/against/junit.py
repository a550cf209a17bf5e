"""The comparison of two bundles as JUnit XML."""

from __future__ import annotations

from export.parity.against.report import AgainstReport
from export.parity.junit import suite_xml


def against_junit(report: AgainstReport) -> bytes:
    """Returns the XML: a case per backend and check."""
    properties = {"status": report.status, "old": str(report.old.path), "new": str(report.new.path)}
    if report.sample is not None:
        properties["sample"] = report.sample.text()
    return suite_xml(report.checks, properties, None, report.seconds)
