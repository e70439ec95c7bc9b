"""Bars of every peer's tokens a second, workload by workload: one SVG, light or dark."""

from collections.abc import Iterator, Sequence
from html import escape
from statistics import median

from plimsoll.bench.peers.catalog import IN_INT8, ONE_CORE, PLIMSOLL
from plimsoll.bench.peers.measure import FigureName
from plimsoll.bench.peers.results import ModelResults
from plimsoll.bench.peers.workloads import TOKENS_PER_S
from plimsoll.charts.svg import WIDTH, svg

NAME_WIDTH, VALUE_WIDTH = 300, 190
BAR_HEIGHT, ROW_HEIGHT, GAP = 14, 19, 18
STYLE = """<style>text { font: 12px system-ui, sans-serif; fill: #1d2228; }
.title { font-weight: 600; } .ours { fill: #0072b2; } .peer { fill: #838a91; }
@media (prefers-color-scheme: dark) { text { fill: #e6e8ea; } .ours { fill: #2f7fe6; } }</style>"""


def chart(results: Sequence[ModelResults]) -> str:
    """The drawing: for each model and rate the fastest first, with its worst cosine."""
    marks, y = [STYLE], float(GAP)
    for one in results:
        for name in one.names:
            if name.unit == TOKENS_PER_S:
                marks.append(_text(4, y, f"{one.model}: {name.name}", "title"))
                bars = list(_bars(one, name, y + ROW_HEIGHT))
                marks += bars
                y += ROW_HEIGHT * (len(bars) + 1) + GAP
    return svg(y, marks, "Tokens a second of each peer, workload by workload") + "\n"


def _bars(results: ModelResults, name: FigureName, y: float) -> Iterator[str]:
    peers = dict.fromkeys(one.kind.name for one in results.measured)
    best = [found for peer in peers if peer != ONE_CORE and (found := results.best(name, peer))]
    rated = [(median(one.values(name.name).values()), one) for one in best]
    rated.sort(key=lambda pair: -pair[0])
    for rate, one in rated:
        width = (WIDTH - NAME_WIDTH - VALUE_WIDTH) * rate / rated[0][0]
        kind = "ours" if one.kind.name in (PLIMSOLL, IN_INT8) else "peer"
        cosine = f", cosine {one.worst_cosine:.5f}" if one.worst_cosine is not None else ""
        yield (
            _text(4, y, one.kind.title)
            + f'<rect class="{kind}" x="{NAME_WIDTH}" y="{y - BAR_HEIGHT + 3:g}" '
            f'width="{width:.1f}" height="{BAR_HEIGHT}"/>'
            + _text(NAME_WIDTH + width + 6, y, f"{rate:,.0f}{cosine}")
        )
        y += ROW_HEIGHT


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:g}" class="{kind}">{escape(text)}</text>'
