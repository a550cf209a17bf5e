"""The report as one HTML page: verdict, chain, scatter, flips. It asks the network for nothing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from export.parity.checks import Check
from export.parity.outcome import GateReport, bound_lines
from export.parity.page.charts import Bar, bar_chart, scatter
from export.parity.page.gallery import gallery
from export.parity.page.style import STYLE
from export.parity.statistics.measures import Comparison, Spread
from export.parity.waterfall import Hop
from runtime.names import printable_name

# Said to the browser too, so that nothing in the page could load anything even by mistake.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SIGNS = {"passed": ("✓", "good"), "failed": ("✗", "bad"), "skipped": ("○", "skip"), "first": ("•", "skip")}


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
        _section("Waterfall", _waterfall(report)),
        _section("Hops", "".join(_hop(hop, report) for hop in report.waterfall.hops)),
    ]
    if where:
        lines = "\n".join(printable_name(line) for line in where)
        sections.append(_section("Where it breaks", f"<pre>{escape(lines)}</pre>"))
    if drift:
        sections.append(_section("Drift by block", _drift(drift)))
    sections += [
        _section("Logits", _scatters(report)),
        _section("Generators", _generators(report)),
        _section("Changed verdicts", gallery(report)),
        _section("How sure this is", _sureness(report)),
        _section("Checks", _checks(report.checks)),
        _section("Environment", _environment(report)),
        _section("Reproduce", f"<pre>{escape(_command(report))}</pre>"),
    ]
    state = "passed" if report.passed else "FAILED"
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY, quote=True)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Parity {state}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{''.join(sections)}\n</body>\n</html>\n"
    )
    return page.encode()


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>\n"


def _verdict(report: GateReport) -> str:
    kind, word = ("good", "Passed") if report.passed else ("bad", "Failed")
    count = len(report.waterfall.pictures)
    lines = [f"{count} pictures, threshold {report.decision.threshold:.6g}"]
    if report.passed:
        lines.append("No form that ran here judges these pictures otherwise than the first one.")
    else:
        title = next((h.title for h in report.waterfall.hops if h.key == report.blame), report.blame or "")
        lines.append(f"The chain breaks at: {title}")
        lines += [check.line() for check in report.failed[:4]]
    skipped = [hop.title for hop in report.waterfall.hops if hop.status == "skipped"]
    if skipped:
        lines.append(f"Did not run here, so nothing is said of: {', '.join(skipped)}")
    if report.unreadable:
        lines.append(f"{len(report.unreadable)} pictures could not be read and were left out")
    spans = "".join(f"<span>{escape(printable_name(line))}</span><br>" for line in lines)
    return (
        f'<h1>Parity of a bundle</h1>\n<div class="verdict {kind}"><strong>{word}</strong>{spans}</div>\n'
        f'<p class="faint">bundle {escape(report.digest or "being built")}</p>\n'
    )


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
    sign, kind = _SIGNS[status]
    head = f'<b class="{kind}">{sign}</b> {escape(printable_name(hop.title))}'
    failed = [check for check in report.failed if check.hop == hop.key]
    opened = " open" if failed else ""
    if hop.previous is None or hop.first is None:
        said = "what the others are compared with" if hop.status == "first" else f"{status}: {hop.reason}"
        body = f"{_list(failed)}<p>{escape(printable_name(said))}</p>"
        return f"<details{opened}><summary>{head}</summary>{body}</details>"
    largest = hop.previous.logit.largest
    head += f' <span class="faint">max {_number(largest)}, {len(hop.previous.flips)} flips</span>'
    body = _comparison(hop.previous, report.limits.max_abs_logit(hop.precision))
    if hop.first.reference != hop.previous.reference:
        body += _comparison(hop.first, report.limits.max_abs_logit(hop.coarsest))
    return f"<details{opened}><summary>{head}</summary>{_list(failed)}{body}</details>"


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
            f"{report.borrowed} pictures are of a rare kind (HEIC, Lab, 32-bit): their decoding was not "
            "checked, their patch selection was."
        )
    return "".join(f"<p>{escape(line)}</p>" for line in lines) or "<p>Nothing was compared.</p>"


def _checks(checks: Sequence[Check]) -> str:
    parts = []
    for status in ("failed", "skipped", "passed"):
        some = [check for check in checks if check.status == status]
        if some:
            sign, kind = _SIGNS[status]
            opened = " open" if status == "failed" else ""
            head = f'<b class="{kind}">{sign}</b> {len(some)} {status}'
            parts.append(f"<details{opened}><summary>{head}</summary>{_list(some)}</details>")
    return "".join(parts)


def _list(checks: Sequence[Check]) -> str:
    items = "".join(f"<li>{escape(printable_name(check.line()))}</li>" for check in checks)
    return f"<ul>{items}</ul>" if items else ""


def _environment(report: GateReport) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.environment.items())
    return f"<dl>{rows}</dl>"


def _command(report: GateReport) -> str:
    return printable_name(shlex.join(report.command)) if report.command else "python -m export parity BUNDLE"


def _spread(spread: Spread) -> str:
    values = (("max", spread.largest), ("mean", spread.mean), ("p50", spread.p50), ("p99", spread.p99))
    return ", ".join(f"{name} {_number(value)}" for name, value in values)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g}"
