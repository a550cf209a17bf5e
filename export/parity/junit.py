"""The report as JUnit XML: one case per hop and check, for the page on which a CI system shows its tests."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from export.parity.checks import ERRORS, FAILED, SKIPPED, Check
from export.parity.outcome import GateReport
from runtime.names import printable_name


def junit_xml(report: GateReport) -> bytes:
    """Returns the XML of a gate; its forward passes are the time of the first case of their hop."""
    properties = {"status": report.status, "pictures": f"{len(report.waterfall.pictures):,} compared"}
    if report.sample is not None:
        properties["sample"] = report.sample.text()
    seconds = {hop.key: hop.seconds for hop in report.waterfall.hops}
    return suite_xml(report.checks, properties, seconds, report.waterfall.seconds)


def suite_xml(
    checks: Sequence[Check],
    properties: Mapping[str, str],
    seconds: Mapping[str, float] | None = None,
    total_seconds: float = 0.0,
) -> bytes:
    """Returns the XML of some checks: skipped ones are skipped there too, a failure carries its line.

    What is neither passed, failed nor skipped is an ``<error>``: no word on the model, and not green.

    Args:
        checks: a case each.
        properties: of the whole suite.
        seconds: of the hops that were timed, by key.
        total_seconds: of the whole suite.
    """
    count = {status: sum(c.status == status for c in checks) for status in (FAILED, SKIPPED)}
    totals = {
        "tests": str(len(checks)),
        "failures": str(count[FAILED]),
        "errors": str(sum(check.status in ERRORS for check in checks)),
        "skipped": str(count[SKIPPED]),
        "time": f"{total_seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "parity"} | totals)
    suite = ET.SubElement(root, "testsuite", {"name": "parity"} | totals)
    listed = ET.SubElement(suite, "properties")
    for name, value in properties.items():
        ET.SubElement(listed, "property", {"name": name, "value": printable_name(value)})
    left = dict(seconds or {})
    for check in checks:
        # Characters that XML cannot hold, such as a line break's cousins in a file name, are escaped first.
        case = ET.SubElement(
            suite,
            "testcase",
            {
                "classname": f"parity.{printable_name(check.hop)}",
                "name": printable_name(check.name),
                # The forward passes of a hop are shared by its checks: only the first one carries them.
                "time": f"{left.pop(check.hop, 0.0):.3f}",
            },
        )
        text = printable_name(check.text)
        if check.status == SKIPPED:
            ET.SubElement(case, "skipped", {"message": text})
        elif check.status == FAILED:
            failure = ET.SubElement(case, "failure", {"message": text, "type": "parity"})
            failure.text = printable_name(check.line())
        elif check.status in ERRORS:
            error = ET.SubElement(case, "error", {"message": text, "type": check.status})
            error.text = printable_name(check.line())
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"
