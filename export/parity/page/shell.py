"""What every report page is made of: one HTML file, its verdict box, its lists of checks."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape

from export.parity.checks import ERRORS, FAILED, NOT_RUN, PASSED, SKIPPED, STOPPED, UNREADABLE, Check
from export.parity.page.style import STYLE
from runtime.names import printable_name

# Said to the browser too, so that nothing in the page could load anything even by mistake.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SIGNS = {
    PASSED: ("✓", "good"), FAILED: ("✗", "bad"), SKIPPED: ("○", "skip"), "first": ("•", "skip"),
} | dict.fromkeys(ERRORS, ("!", "bad"))  # fmt: skip
_WORDS = {
    PASSED: "Passed",
    FAILED: "Failed",
    UNREADABLE: "Unreadable pictures",
    NOT_RUN: "Not run",
    STOPPED: "Stopped",
}


def page(title: str, sections: Sequence[str]) -> bytes:
    """Returns a whole page, UTF-8, that asks the network for nothing."""
    content = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY, quote=True)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{''.join(sections)}\n</body>\n</html>\n"
    )
    return content.encode()


def section(title: str, content: str) -> str:
    """Returns a section with its heading; ``content`` is HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>\n"


def verdict_box(heading: str, status: str, lines: Sequence[str]) -> str:
    """Returns the heading of a page and the verdict below it; ``lines`` are plain text."""
    kind = "good" if status == PASSED else "bad"
    spans = "".join(f"<span>{escape(printable_name(line))}</span><br>" for line in lines)
    return (
        f'<h1>{escape(heading)}</h1>\n<div class="verdict {kind}"><strong>{_WORDS[status]}</strong>'
        f"{spans}</div>\n"
    )


def checks_by_status(checks: Sequence[Check]) -> str:
    """Returns all checks, what keeps the report from passing first."""
    parts = []
    for status in (FAILED, *ERRORS, SKIPPED, PASSED):
        some = [check for check in checks if check.status == status]
        if some:
            sign, kind = SIGNS[status]
            opened = " open" if status in (FAILED, *ERRORS) else ""
            head = f'<b class="{kind}">{sign}</b> {len(some)} {status}'
            parts.append(f"<details{opened}><summary>{head}</summary>{check_list(some)}</details>")
    return "".join(parts)


def check_list(checks: Sequence[Check]) -> str:
    """Returns checks as a list, nothing where there are none."""
    items = "".join(f"<li>{escape(printable_name(check.line()))}</li>" for check in checks)
    return f"<ul>{items}</ul>" if items else ""


def pairs(rows: Mapping[str, str]) -> str:
    """Returns names and values, both plain text."""
    listed = "".join(
        f"<dt>{escape(printable_name(name))}</dt><dd>{escape(printable_name(value))}</dd>"
        for name, value in rows.items()
    )
    return f"<dl>{listed}</dl>"


def command_line(command: Sequence[str]) -> str:
    """Returns the command to run again."""
    text = printable_name(shlex.join(command)) if command else "python -m export parity BUNDLE"
    return f"<pre>{escape(text)}</pre>"
