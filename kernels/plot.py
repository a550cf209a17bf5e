"""A line chart as SVG text: share of copy bandwidth over bytes moved. Standard library only."""

from __future__ import annotations

import math
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 220, 40, 50
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FLOOR = 0.8


def draw_svg(curves: dict[str, list[tuple[float, float]]], *, title: str) -> str:
    """Returns the chart; x is logarithmic, y from 0 to the largest share.

    Args:
        curves: name to points (bytes moved, share of copy bandwidth); bytes above 0.
        title: shown on top.

    Raises:
        ValueError: there is nothing to draw.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("curves: found no points, expected at least one measurement")
    low = math.floor(min(math.log10(x) for x, _ in points))
    high = max(low + 1, math.ceil(max(math.log10(x) for x, _ in points)))
    top = max(1.0, *(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low) / (high - low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}: share of copy bandwidth</text>',
    ]
    for exponent in range(low, high + 1):
        x, y = place(10.0**exponent, 0.0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">1e{exponent}</text>')
    for tenths in range(0, int(top * 10) + 1, 2):
        x, y = place(10.0**low, tenths / 10)
        parts.append(_line(x, y, WIDTH - RIGHT, y, "#dddddd"))
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{tenths * 10} %</text>')
    _, y = place(10.0**low, FLOOR)
    parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "#888888"))
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">bytes moved per call</text>')
    for index, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        # Past the palette's end the same colour comes back dashed.
        dash = f' stroke-dasharray="{2 * (index // len(COLOURS)) + 2} 3"' if index >= len(COLOURS) else ""
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in sorted(curve))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        at = TOP + 14 * index
        parts.append(
            f'<text x="{WIDTH - RIGHT + 12}" y="{at}" font-size="10" fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
