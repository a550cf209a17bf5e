"""The charts of the report as inline SVG, drawn 360 units wide so that text stays readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

_WIDTH = 360
_LEFT, _RIGHT = 8, 352
_ROW = 38
_MOST_DOTS = 1500


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: label, largest value with its p50 and p99, the limit, and how it came out."""

    label: str
    largest: float | None
    p50: float | None
    p99: float | None
    limit: float | None
    status: str


def bar_chart(bars: Sequence[Bar], title: str) -> str:
    """Returns bars on a logarithmic axis, one row each; a row without a value carries its status in words."""
    values = [value for bar in bars for value in (bar.largest, bar.p50, bar.limit) if value]
    # A little room below the smallest value, which else would look like 0.
    low = math.floor(math.log10(max(min(values, default=1e-3), 1e-9)) - 0.2)
    high = max(math.ceil(math.log10(max(values, default=1.0))), low + 1)

    def x(value: float | None) -> float:
        if not value or value <= 0:
            return float(_LEFT)
        share = (math.log10(value) - low) / (high - low)
        return _LEFT + min(max(share, 0.0), 1.0) * (_RIGHT - _LEFT)

    bottom = _ROW * len(bars) + 6
    parts = [_opening(bottom + 18, title)]
    step = max(1, math.ceil((high - low) / 6))
    for power in range(low, high + 1, step):
        place = x(10.0**power)
        anchor = "start" if place < 20 else "end" if place > _WIDTH - 20 else "middle"
        parts.append(f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="0" y2="{bottom}"/>')
        parts.append(
            f'<text class="quiet" x="{place:.1f}" y="{bottom + 13}" text-anchor="{anchor}">1e{power}</text>'
        )
    for row, bar in enumerate(bars):
        parts += _bar_row(bar, row * _ROW, x)
    return "".join([*parts, "</svg>"])


def _bar_row(bar: Bar, top: int, place: Callable[[float | None], float]) -> list[str]:
    bad = " bad" if bar.status == "failed" else ""
    value = f"{bar.largest:.2g}" if bar.largest is not None else bar.status
    parts = [
        f'<text x="{_LEFT}" y="{top + 13}">{escape(bar.label)}</text>',
        f'<text x="{_RIGHT}" y="{top + 13}" text-anchor="end">{escape(value)}{" ✗" if bad else ""}</text>',
    ]
    if bar.largest is None:
        return parts
    width = max(place(bar.largest) - _LEFT, 1.5)
    parts.append(
        f'<rect class="bar{bad}" x="{_LEFT}" y="{top + 18}" width="{width:.1f}" height="12" rx="1"/>'
    )
    for value_at in (bar.p50, bar.p99):
        if value_at:
            at = place(value_at)
            parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top + 18}" y2="{top + 30}"/>')
    if bar.limit:
        at = place(bar.limit)
        parts.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{top + 16}" y2="{top + 33}"/>')
    return parts


def scatter(
    across: NDArray[np.float32],
    up: NDArray[np.float32],
    *,
    special: NDArray[np.bool_],
    title: str,
    labels: tuple[str, str],
    boundary: float,
    is_difference: bool,
) -> str:
    """Returns a scatter plot of finite pairs; flips are drawn last, in the colour of failures.

    Args:
        across: values on the horizontal axis, ``[N]``.
        up: values on the vertical axis, ``[N]``.
        special: which points are flips.
        title: said to those who cannot see it.
        labels: of the two axes.
        boundary: raw logit at which the verdict changes.
        is_difference: whether ``up`` is a difference, whose axis is symmetric around 0; else both axes agree.
    """
    finite = np.isfinite(across) & np.isfinite(up)
    across, up, special = across[finite], up[finite], special[finite]
    if not across.size:
        return '<p class="faint">No finite pairs.</p>'
    side = 300
    left, top = 48, 8
    x_low, x_high = _padded(float(across.min()), float(across.max()))
    y_low, y_high = _padded(float(up.min()), float(up.max()))
    if is_difference:
        reach = max(abs(y_low), abs(y_high), 1e-9)
        y_low, y_high = -reach, reach
    else:
        x_low, x_high = y_low, y_high = min(x_low, y_low), max(x_high, y_high)

    def x(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * side

    def y(value: float) -> float:
        return top + side - (value - y_low) / (y_high - y_low) * side

    parts = [_opening(top + side + 44, title)]
    parts.append(f'<rect class="axis" fill="none" x="{left}" y="{top}" width="{side}" height="{side}"/>')
    ends = (0.0, 0.0) if is_difference else (x_low, x_high)
    parts.append(
        f'<line class="diagonal" x1="{x(x_low):.1f}" y1="{y(ends[0]):.1f}" x2="{x(x_high):.1f}" '
        f'y2="{y(ends[1]):.1f}"/>'
    )
    if x_low < boundary < x_high:
        at = x(boundary)
        parts.append(f'<line class="boundary" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + side}"/>')
    for k in _sampled(special):
        kind, radius = ("dot bad", 3.5) if special[k] else ("dot", 2.2)
        parts.append(f'<circle class="{kind}" cx="{x(across[k]):.1f}" cy="{y(up[k]):.1f}" r="{radius}"/>')
    bottom = top + side
    for value, anchor in ((x_low, "start"), (x_high, "end")):
        parts.append(
            f'<text class="quiet" x="{x(value):.1f}" y="{bottom + 14}" text-anchor="{anchor}">'
            f"{value:.2g}</text>"
        )
    for value, drop in ((y_low, 0), (y_high, 9)):
        parts.append(
            f'<text class="quiet" x="{left - 4}" y="{y(value) + drop:.1f}" text-anchor="end">'
            f"{value:.2g}</text>"
        )
    parts.append(
        f'<text x="{left + side / 2:g}" y="{bottom + 30}" text-anchor="middle">{escape(labels[0])}</text>'
    )
    middle = top + side / 2
    parts.append(
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        f"{escape(labels[1])}</text>"
    )
    return "".join([*parts, "</svg>"])


def _opening(height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>"
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
    return low - room, high + room


def _sampled(special: NDArray[np.bool_]) -> list[int]:
    """Returns every flip and an even choice of the rest, flips last, so that a page stays small."""
    plain = np.flatnonzero(~special)
    if plain.size > _MOST_DOTS:
        plain = plain[np.linspace(0, plain.size - 1, _MOST_DOTS).astype(np.int64)]
    return [*plain.tolist(), *np.flatnonzero(special).tolist()]
