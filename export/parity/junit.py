"""The report as JUnit XML: one case per hop and check, for the page on which a CI system shows its tests."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from export.parity.checks import FAILED, SKIPPED
from export.parity.outcome import GateReport
from runtime.names import printable_name


def junit_xml(report: GateReport) -> bytes:
    """Returns the XML; skipped checks are skipped there too, and a failure carries its line."""
    count = {status: sum(c.status == status for c in report.checks) for status in (FAILED, SKIPPED)}
    totals = {
        "tests": str(len(report.checks)),
        "failures": str(count[FAILED]),
        "errors": "0",
        "skipped": str(count[SKIPPED]),
        "time": f"{report.waterfall.seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "parity"} | totals)
    suite = ET.SubElement(root, "testsuite", {"name": "parity"} | totals)
    seconds = {hop.key: hop.seconds for hop in report.waterfall.hops}
    for check in report.checks:
        # Characters that XML cannot hold, such as a line break's cousins in a file name, are escaped first.
        case = ET.SubElement(
            suite,
            "testcase",
            {
                "classname": f"parity.{printable_name(check.hop)}",
                "name": printable_name(check.name),
                # The forward passes of a hop are shared by its checks: only the first one carries them.
                "time": f"{seconds.pop(check.hop, 0.0):.3f}",
            },
        )
        text = printable_name(check.text)
        if check.status == SKIPPED:
            ET.SubElement(case, "skipped", {"message": text})
        elif check.status == FAILED:
            failure = ET.SubElement(case, "failure", {"message": text, "type": "parity"})
            failure.text = printable_name(check.line())
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"
