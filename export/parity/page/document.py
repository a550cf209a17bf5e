"""The report as one HTML page: verdict, chain, scatter, flips. It asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from export.parity.checks import ERRORS, STOPPED
from export.parity.outcome import GateReport, bound_lines
from export.parity.page.charts import Bar, bar_chart, scatter
from export.parity.page.gallery import gallery
from export.parity.page.shell import (
    SIGNS,
    check_list,
    checks_by_status,
    command_line,
    page,
    pairs,
    section,
    verdict_box,
)
from export.parity.statistics.measures import Comparison, Spread
from export.parity.waterfall import Hop
from runtime.names import printable_name


@dataclass(frozen=True)
class BlockDrift:
    """How far one block's output is from the same block of the graph before.

    Attributes:
        block: its name, such as "block_3".
        relative_error: norm of the difference over the norm, largest over tokens.
        cosine: smallest over tokens.
        limit: largest relative error that is allowed.
    """

    block: str
    relative_error: float
    cosine: float
    limit: float


def html_page(report: GateReport, drift: Sequence[BlockDrift] = (), where: Sequence[str] = ()) -> bytes:
    """Returns the page, UTF-8.

    Args:
        report: the outcome of the gate.
        drift: of the blocks, where they were compared too; empty leaves the section out.
        where: what looking for the place came to, as lines; empty leaves the section out.
    """
    sections = [
        _verdict(report),
        section("Waterfall", _waterfall(report)),
        section("Hops", "".join(_hop(hop, report) for hop in report.waterfall.hops)),
    ]
    if where:
        lines = "\n".join(printable_name(line) for line in where)
        sections.append(section("Where it breaks", f"<pre>{escape(lines)}</pre>"))
    if drift:
        sections.append(section("Drift by block", _drift(drift)))
    sections += [
        section("Logits", _scatters(report)),
        section("Generators", _generators(report)),
        section("Changed verdicts", gallery(report)),
        section("How sure this is", _sureness(report)),
        section("Checks", checks_by_status(report.checks)),
        section("Environment", pairs(report.environment)),
        section("Reproduce", command_line(report.command)),
    ]
    state = report.verdict().partition(":")[0]
    return page(f"Parity {state}", sections)


def _verdict(report: GateReport) -> str:
    count = len(report.waterfall.pictures)
    lines = [f"{count} pictures, threshold {report.decision.threshold:.6g}"]
    if report.failed:
        title = next((h.title for h in report.waterfall.hops if h.key == report.blame), report.blame or "")
        lines.append(f"The chain breaks at: {title}")
        lines += [check.line() for check in report.failed[:4]]
    elif report.status != STOPPED:
        lines.append("No form that ran here judges these pictures otherwise than the first one.")
    lines += [check.line() for check in report.checks if check.status in ERRORS]
    lines += report.remarks()
    box = verdict_box("Parity of a bundle", report.status, lines)
    return f'{box}<p class="faint">bundle {escape(report.digest or "being built")}</p>\n'


def _waterfall(report: GateReport) -> str:
    bars = []
    for hop in report.waterfall.hops:
        if hop.status == "first":
            continue
        found = hop.previous
        limit = report.limits.max_abs_logit(hop.precision) if found is not None else None
        bars.append(
            Bar(
                hop.title,
                None if found is None else found.logit.largest,
                None if found is None else found.logit.p50,
                None if found is None else found.logit.p99,
                limit,
                _bar_status(hop, report),
            )
        )
    legend = (
        '<p class="faint">Difference of logits against the form before: the bar ends at the largest, the '
        "strokes are p50 and p99, the dashed line is the limit. Logarithmic; 0 is the left edge.</p>"
    )
    return f"<figure>{bar_chart(bars, 'Difference of logits at each hop')}</figure>{legend}"


def _bar_status(hop: Hop, report: GateReport) -> str:
    """What a hop was handed down is not its bar's: that shows the step from the form before."""
    status = report.hop_status(hop)
    if status == "failed" and not any(check.is_own for check in report.failed if check.hop == hop.key):
        return "handed down"
    return status


def _hop(hop: Hop, report: GateReport) -> str:
    status = report.hop_status(hop)
    sign, kind = SIGNS[status]
    head = f'<b class="{kind}">{sign}</b> {escape(printable_name(hop.title))}'
    failed = [check for check in report.failed if check.hop == hop.key]
    opened = " open" if failed else ""
    if hop.previous is None or hop.first is None:
        said = "what the others are compared with" if hop.status == "first" else f"{status}: {hop.reason}"
        body = f"{check_list(failed)}<p>{escape(printable_name(said))}</p>"
        return f"<details{opened}><summary>{head}</summary>{body}</details>"
    largest = hop.previous.logit.largest
    head += f' <span class="faint">max {_number(largest)}, {len(hop.previous.flips)} flips</span>'
    body = _comparison(hop.previous, report.limits.max_abs_logit(hop.precision))
    if hop.first.reference != hop.previous.reference:
        body += _comparison(hop.first, report.limits.max_abs_logit(hop.coarsest))
    return f"<details{opened}><summary>{head}</summary>{check_list(failed)}{body}</details>"


def _comparison(found: Comparison, limit: float) -> str:
    rows = [
        ("|Δ logit|", f"{_spread(found.logit)}; limit {limit:g}"),
        ("|Δ probability|", _spread(found.probability)),
        ("flips", f"{len(found.flips)}, {found.hard_flips} hard; {found.flips_at_half} at 0.5"),
    ]
    if found.nonfinite:
        rows.append(("not finite", str(found.nonfinite)))
    if found.cosine is not None:
        rows.append(
            ("cosine", f"min 1 - {1 - found.cosine.smallest:.1e}, mean 1 - {1 - found.cosine.mean:.1e}")
        )
    if found.ranking is not None:
        before, after = found.ranking
        rows.append(("AP", f"{before.ap:.6f} → {after.ap:.6f} ({after.ap - before.ap:+.2g})"))
        rows.append(("AUROC", f"{before.auroc:.6f} → {after.auroc:.6f} ({after.auroc - before.auroc:+.2g})"))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<p class="faint">against {escape(found.reference)}</p><dl>{listed}</dl>'


def _scatters(report: GateReport) -> str:
    last = report.last
    if last is None or last.first is None:
        return "<p>Nothing to draw.</p>"
    reference, found = last.first.reference, last.key
    before, after = report.waterfall.logits[reference], report.waterfall.logits[found]
    changed = {flip.item for flip in last.first.flips}
    special = np.array([picture.name in changed for picture in report.waterfall.pictures])
    with np.errstate(invalid="ignore"):
        difference = after - before
    charts = [
        scatter(
            before, values, special=special, title=title, labels=(reference, label),
            boundary=report.decision.boundary_logit, is_difference=is_difference,
        )
        for values, title, label, is_difference in (
            (after, "Logits of the last form over those of the first", found, False),
            (difference, "Their difference over the first form's logits", "difference", True),
        )
    ]  # fmt: skip
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    return (
        f'<div class="pair">{figures}</div><p class="faint">Red: the verdict changed. Dotted: where it '
        "changes. Dashed: no difference.</p>"
    )


def _generators(report: GateReport) -> str:
    last = report.last
    if last is None or last.first is None:
        return "<p>Nothing was compared.</p>"
    rows = []
    for group in last.first.groups:
        ap = "none" if group.ap is None else f"{group.ap[0]:.4f} → {group.ap[1]:.4f}"
        rows.append(
            f"<tr><td>{escape(printable_name(group.name))}</td><td>{group.count}</td>"
            f"<td>{_number(group.max_abs_logit)}</td><td>{group.flips}</td><td>{ap}</td></tr>"
        )
    head = "<tr><th>generator</th><th>n</th><th>max |Δ|</th><th>flips</th><th>AP</th></tr>"
    return (
        f'<p class="faint">{escape(last.title)} against {escape(last.first.reference)}</p>'
        f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _drift(drift: Sequence[BlockDrift]) -> str:
    bars = [
        Bar(
            f"{one.block}, cosine {one.cosine:.6f}",
            one.relative_error,
            None,
            None,
            one.limit,
            "failed" if not one.relative_error <= one.limit else "passed",
        )
        for one in drift
    ]
    return f"<figure>{bar_chart(bars, 'Relative error of each block')}</figure>"


def _sureness(report: GateReport) -> str:
    last = report.last
    lines = [] if last is None or last.first is None else bound_lines(last.first)
    if report.borrowed:
        lines.append(
            f"{report.borrowed} pictures are of a rare kind (HEIC, Lab, 32-bit, cut off): their decoding "
            "was not checked, their patch selection was."
        )
    return "".join(f"<p>{escape(line)}</p>" for line in lines) or "<p>Nothing was compared.</p>"


def _spread(spread: Spread) -> str:
    values = (("max", spread.largest), ("mean", spread.mean), ("p50", spread.p50), ("p99", spread.p99))
    return ", ".join(f"{name} {_number(value)}" for name, value in values)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g}"
