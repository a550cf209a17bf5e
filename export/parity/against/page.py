"""The comparison of two bundles as one HTML page."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from export.parity.against.changes import Change, Changes
from export.parity.against.report import AgainstReport, PairReport
from export.parity.checks import ERRORS, FAILED
from export.parity.page.charts import scatter
from export.parity.page.gallery import MOST_CARDS, file_pixels, thumbnail
from export.parity.page.shell import checks_by_status, command_line, page, pairs, section, verdict_box
from export.parity.pictures.data_set import Picture
from runtime.names import printable_name


def against_page(report: AgainstReport) -> bytes:
    """Returns the page, UTF-8."""
    settings = "".join(f"<li>{escape(printable_name(line))}</li>" for line in report.settings_lines())
    sections = [
        _verdict(report),
        section("Settings", f"<ul>{settings}</ul>"),
        *(section(f"Verdicts of {pair.title}", _pair(pair)) for pair in report.pairs),
        section("Changed verdicts", _gallery(report)),
        section("Checks", checks_by_status(report.checks)),
        section("Environment", pairs(report.environment)),
        section("Reproduce", command_line(report.command)),
    ]
    return page(f"Old against new: {report.verdict().partition(':')[0]}", sections)


def _verdict(report: AgainstReport) -> str:
    lines = [
        f"{pair.title}: {pair.changes.changed} of {pair.changes.count:,} verdicts changed, allowed "
        f"{report.allowed} ({pair.changes.split()})"
        for pair in report.pairs
    ]
    lines += [check.line() for check in report.checks if check.status in (FAILED, *ERRORS)]
    sides = "".join(
        f'<p class="faint">{word} {escape(printable_name(str(side.path)))} ({side.manifest.digest})</p>\n'
        for word, side in (("old", report.old), ("new", report.new))
    )
    return verdict_box("An old bundle against a new one", report.status, [*lines, *report.remarks()]) + sides


def _pair(pair: PairReport) -> str:
    before, after = pair.old, pair.new
    chart = scatter(
        before.logits.astype(np.float32),
        after.logits.astype(np.float32),
        special=_changed_places(pair),
        title="Logits of the new bundle over those of the old one",
        labels=("old", "new"),
        boundary=before.decision.boundary_logit,
        is_difference=False,
    )
    rows = {
        "|Δ logit|": f"max {_number(pair.changes.logit.largest)}, median {_number(pair.changes.logit.p50)}",
        "|Δ probability|": f"max {_number(pair.changes.probability.largest)}, median "
        f"{_number(pair.changes.probability.p50)}",
        "split": f"{pair.changes.split()}; so uneven by chance with p {pair.changes.chance:.2g}",
    }
    if pair.changes.truth is not None:
        rows["right"] = pair.changes.truth.line()
    return (
        f"{pairs(rows)}{_table(pair)}<figure>{chart}</figure>"
        '<p class="faint">Red: the verdict changed. Dotted: the old bundle\'s boundary. Dashed: no '
        f"difference.</p><p>{escape(pair.sureness())}</p>"
    )


def _changed_places(pair: PairReport) -> NDArray[np.bool_]:
    special = np.zeros(len(pair.pictures), dtype=bool)
    special[[change.place for change in pair.changed]] = True
    return special


def _table(pair: PairReport) -> str:
    head = "<tr><th>generator</th><th>n</th><th>changed</th><th>max |Δ|</th><th>accuracy</th><th>AP</th></tr>"
    rows = "".join(_row(name, one) for name, one in pair.generators.items())
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _row(name: str, one: Changes) -> str:
    accuracy = ap = "none"
    if one.truth is not None:
        accuracy = f"{one.truth.accuracy[0]:.4f} → {one.truth.accuracy[1]:.4f}"
        if one.truth.ranking is not None:
            ap = f"{one.truth.ranking[0].ap:.4f} → {one.truth.ranking[1].ap:.4f}"
    return (
        f"<tr><td>{escape(printable_name(name))}</td><td>{one.count}</td><td>{one.changed}</td>"
        f"<td>{_number(one.logit.largest)}</td><td>{accuracy}</td><td>{ap}</td></tr>"
    )


def _gallery(report: AgainstReport) -> str:
    cards: dict[str, tuple[PairReport, Change]] = {}
    for pair in report.pairs:
        for change in pair.changed:
            cards.setdefault(change.item, (pair, change))
    if not cards:
        return "<p>No verdict changed.</p>"
    shown = [_card(pair, change, report) for pair, change in list(cards.values())[:MOST_CARDS]]
    more = ""
    if len(cards) > MOST_CARDS:
        more = f'<p class="faint">and {len(cards) - MOST_CARDS} more; --json-file lists them all</p>'
    return f'<div class="gallery">{"".join(shown)}</div>{more}'


def _card(pair: PairReport, change: Change, report: AgainstReport) -> str:
    name = escape(printable_name(change.item), quote=True)
    pixels = _pixels(pair.pictures[change.place], change.place, report)
    image = '<div class="none">no preview</div>'
    if pixels is not None:
        image = f'<img alt="{name}" src="{thumbnail(pixels)}">'
    truth = "" if change.truth < 0 else f"<div>{escape(change.line().rpartition('; ')[2])}</div>"
    old, new = change.old or "no verdict", change.new or "no verdict"
    return (
        f'<div class="card">{image}<div>{name}</div><div>old: {escape(str(old))}</div>'
        f"<div>new: {escape(str(new))}</div>{truth}<div>{escape(pair.key)}</div></div>"
    )


def _pixels(picture: Picture, place: int, report: AgainstReport) -> NDArray[np.uint8] | None:
    if picture.path is not None:
        return file_pixels(picture.path, report.reading.limits)
    return None if report.golden is None else report.golden[place]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g}"
