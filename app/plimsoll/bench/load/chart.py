"""A report as a page of charts: inline SVG, nothing to load, light or dark as the reader has it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from plimsoll.bench.load.before_after import HEADS as CHANGE_HEADS
from plimsoll.bench.load.percentile_chart import POINTS, percentile_chart
from plimsoll.bench.load.report import LoadReport, Second
from plimsoll.bench.load.table import HEADS, facts_of, remarks, rows_of
from plimsoll.charts.lines import line_chart
from plimsoll.charts.page import html_page, section, table
from plimsoll.charts.svg import HEIGHT, LEFT, PLOT_WIDTH, Scale, frame, svg

MAX_COLUMNS = 240  # seconds of a long run are put together
OUTCOMES = ("dense", "sparse", "refused", "rejected", "failed", "hung_up")
BAR_RATIO = 0.92

# After Okabe and Ito, whose colours the colour-blind can tell apart; darker on a light page, where
# each stands out from the ground by 3 to 1 (WCAG 1.4.11).
COLOURS = """
:root { --dense: #0072b2; --sparse: #b87700; --refused: #838a91; --rejected: #1a9e9e;
  --failed: #d5381f; --hung_up: #c561a0; --p50: #00936b; --p90: #b87700; --p99: #8250c4;
  --max: #d5381f; }
@media screen and (prefers-color-scheme: dark) { :root { --dense: #2f7fe6; --sparse: #f0b429;
  --refused: #9aa1a8; --rejected: #7fe3ea; --failed: #ff5a40; --hung_up: #d77bd6; --p50: #2fc99b;
  --p90: #f0b429; --p99: #b08cf0; --max: #ff5a40; } }
tr:last-child td { font-weight: 600; }
.miss { color: var(--failed); font-weight: 600; }
"""


@dataclass(frozen=True)
class Columns:
    """A timeline of at most MAX_COLUMNS columns, each of so many seconds."""

    seconds: Sequence[Second]
    width_s: int

    @property
    def end_s(self) -> int:
        """Where the last one ends."""
        return len(self.seconds) * self.width_s

    @property
    def width(self) -> float:
        """Of one column, in the drawing."""
        return PLOT_WIDTH / max(1, len(self.seconds))


def page(
    report: LoadReport, misses: Sequence[str] = (), changes: Sequence[Sequence[str]] = ()
) -> str:
    """The whole HTML document."""
    columns = _columns(_whole_seconds(report))
    happened = [name for name in OUTCOMES if getattr(report.totals, name)]
    sections = [
        section("Requests a second, by what became of them", happened, _outcomes(columns)),
        section("Tokens a second, in dense replies", (), _tokens(columns)),
        section("Latency of what ended in each second", ("p50", "p99"), _latency(columns)),
        section("Latency by kind", POINTS, percentile_chart(report)),
    ]
    if changes:
        compared = table(CHANGE_HEADS, changes, "Beside it")
        sections.insert(0, section("Beside the earlier run", (), compared))
    lines = (*facts_of(report), *remarks(report))
    notes = "".join(f"<li>{escape(line)}</li>" for line in lines)
    missed = "".join(f'<p class="miss">MISS: {escape(miss)}</p>' for miss in misses)
    return html_page(
        "Load test",
        COLOURS,
        f"<h1>Load test of {escape(str(report.plan.get('url', '')))}</h1>{missed}"
        f"{table(HEADS, rows_of(report), 'Requests by kind')}<ul>{notes}</ul>"
        f"{''.join(sections)}",
    )


def _whole_seconds(report: LoadReport) -> Sequence[Second]:
    """The timeline without its last second where the run ended in it: it would look like a fall."""
    is_partial = len(report.timeline) > max(1, report.seconds)
    return report.timeline[:-1] if is_partial else report.timeline


def _columns(timeline: Sequence[Second]) -> Columns:
    """Sums over the seconds of each column, and the worst of their percentiles."""
    width_s = max(1, math.ceil(len(timeline) / MAX_COLUMNS))
    groups = [timeline[start : start + width_s] for start in range(0, len(timeline), width_s)]
    return Columns([_together(group) for group in groups], width_s)


def _together(group: Sequence[Second]) -> Second:
    counted = ("sent", *OUTCOMES, "tokens")
    return Second(
        second=group[0].second,
        **{name: sum(getattr(one, name) for one in group) for name in counted},
        p50_s=max((one.p50_s for one in group if one.p50_s is not None), default=None),
        p99_s=max((one.p99_s for one in group if one.p99_s is not None), default=None),
    )


def _outcomes(columns: Columns) -> str:
    """Bars, one on the other; a second in which nothing ended stays empty."""
    heights = [sum(getattr(one, name) for name in OUTCOMES) for one in columns.seconds]
    scale = Scale.up_to(max(heights, default=0) / columns.width_s)
    marks = [*frame(scale, "requests/s", columns.end_s)]
    for place, column in enumerate(columns.seconds):
        below = 0.0
        for name in OUTCOMES:
            if count := getattr(column, name):
                top = below + count / columns.width_s
                title = f"{column.second} s: {count:,} {name.replace('_', ' ')}"
                marks.append(_bar(columns, place, scale.y(top), scale.y(below), name, title))
                below = top
    return svg(HEIGHT, marks, "Requests a second over the run, by what became of them")


def _bar(columns: Columns, place: int, top: float, bottom: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{LEFT + place * columns.width:.1f}" y="{top:.1f}" '
        f'width="{columns.width * BAR_RATIO:.2f}" height="{bottom - top:.1f}" '
        f'fill="var(--{colour})"><title>{title}</title></rect>'
    )


def _tokens(columns: Columns) -> str:
    per_s = [one.tokens / columns.width_s for one in columns.seconds]
    return _lines(columns, {"dense": per_s}, "tokens/s", "Tokens a second over the run")


def _latency(columns: Columns) -> str:
    series = {
        "p50": [one.p50_s for one in columns.seconds],
        "p99": [one.p99_s for one in columns.seconds],
    }
    return _lines(columns, series, "s", "Median and 99th percentile of the latency over the run")


def _lines(
    columns: Columns, series: Mapping[str, Sequence[float | None]], unit: str, label: str
) -> str:
    places = [LEFT + (place + 0.5) * columns.width for place in range(len(columns.seconds))]
    return line_chart(series, places, columns.end_s, unit, label)
