"""Latency percentiles of every kind, as points on an axis of powers of ten."""

import math
from collections.abc import Sequence
from html import escape

from plimsoll.bench.load.report import Counts, LoadReport
from plimsoll.charts.svg import RIGHT, TOP, WIDTH, svg

POINTS = ("p50", "p90", "p99", "max")
LEFT = 110
BOTTOM = 24
ROW_HEIGHT = 30
SHORTEST_S = 1e-5


def percentile_chart(report: LoadReport) -> str:
    """A row for each kind that was answered, and one for all."""
    named = [*report.by_kind.items(), ("total", report.totals)]
    rows = {name: _points(counts) for name, counts in named if counts.latency.n}
    if not rows:
        return "<p>No request was answered.</p>"
    everything = [seconds for row in rows.values() for seconds in row]
    lowest = math.floor(math.log10(min(everything)))
    highest = max(lowest + 1, math.ceil(math.log10(max(everything))))
    per_power = (WIDTH - LEFT - RIGHT * 2) / (highest - lowest)

    def x_of(seconds: float) -> float:
        return LEFT + per_power * (math.log10(seconds) - lowest)

    height = TOP + len(rows) * ROW_HEIGHT + BOTTOM
    marks = [_grid_line(power, x_of(10.0**power), height) for power in range(lowest, highest + 1)]
    for place, (name, row) in enumerate(rows.items()):
        y = TOP + (place + 0.5) * ROW_HEIGHT
        marks.append(_row(escape(name), row, [x_of(seconds) for seconds in row], y))
    return svg(height, marks, "Latency percentiles of each kind")


def _grid_line(power: int, x: float, height: float) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM + 4}" '
        f'stroke="var(--grid)"/><text x="{x:.1f}" y="{height - 4}" '
        f'text-anchor="middle">{10.0**power:g} s</text>'
    )


def _row(name: str, row: Sequence[float], places: Sequence[float], y: float) -> str:
    label = f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{name}</text>'
    ends = f'x1="{places[0]:.1f}" x2="{places[-1]:.1f}" y1="{y}" y2="{y}"'
    marks = [label, f'<line {ends} stroke="var(--faint)"/>']
    for point, seconds, x in zip(POINTS, row, places, strict=True):
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="var(--{point})">'
            f"<title>{name}, {point}: {seconds:.4g} s</title></circle>"
        )
    return "".join(marks)


def _points(counts: Counts) -> list[float]:
    latency = counts.latency
    found = (latency.p50_s, latency.p90_s, latency.p99_s, latency.max_s)
    return [max(SHORTEST_S, seconds or 0.0) for seconds in found]
