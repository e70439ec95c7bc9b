"""A simulation's report for people: a table, and what happened over time as a chart. Pure."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import ceil

from plimsoll.policy.breaker import BreakerState
from plimsoll.simulation.report import Fate, Second, SimulationReport

MIB = 1 << 20
COLUMNS, ROWS = 60, 10
EIGHTHS = " ▁▂▃▄▅▆▇█"
RULE = "┄"  # where a column does not reach the line or the limit
MOST_CHANGES = 12  # of breaker and parallelism that are written out

FATES = {
    Fate.DENSE: "dense",
    Fate.SPARSE: "sparse",
    Fate.QUEUE_FULL: "refused (429)",
    Fate.TOO_LARGE: "too large (413)",
    Fate.NO_ROOM: "no room (503)",
    Fate.UNFINISHED: "unfinished",
}
# The worst last.
BREAKER = {BreakerState.CLOSED: "·", BreakerState.HALF_OPEN: "h", BreakerState.OPEN: "O"}


def render(report: SimulationReport) -> str:
    """The whole report, without a line end."""
    rows = [("requests", f"{len(report.requests)}"), *_fates(report)]
    if len(by_attempts := report.count_by_attempts()) > 1:
        told = ", ".join(f"{count} at attempt {n}" for n, count in by_attempts.items())
        rows.append(("answered", told))
    for label, percentile in (("waited", report.wait_s), ("answered in", report.answered_s)):
        rows.append((label, f"p50 {_seconds(percentile(50))}, p99 {_seconds(percentile(99))}"))
    peak, line, limit = (
        f"{n_bytes / MIB:.0f} MiB"
        for n_bytes in (report.peak_bytes, report.line_bytes, report.limit_bytes)
    )
    rows.append(("memory", f"peak {peak}, line {line}, limit {limit}"))
    (_, first), *changes = report.parallelism()
    later = [f"{parallelism} from {at_s:.0f} s" for at_s, parallelism in changes]
    rows.append(("parallelism", ", ".join([f"{first}", *_shortened(later)])))
    transitions = [f"{t.later.value} at {t.at_s:.0f} s: {t.reason}" for t in report.transitions]
    rows += zip_longest(["breaker"], _shortened(transitions) or ["closed"], fillvalue="")
    table = [f"{label:<17} {value}" for label, value in rows]
    return "\n".join([*table, "", *_charts(report)])


def _fates(report: SimulationReport) -> Iterator[tuple[str, str]]:
    for fate, label in FATES.items():
        reasons = [f"{reason} {count}" for reason, count in report.reasons(fate).items()]
        told = f"  ({', '.join(reasons)})" if reasons else ""
        yield f"  {label}", f"{report.count(fate)}{told}"


def _charts(report: SimulationReport) -> Iterator[str]:
    """Used memory as columns, and below each of them what held at that time."""
    width = ceil(len(report.seconds) / COLUMNS)
    columns = [
        report.seconds[start : start + width] for start in range(0, len(report.seconds), width)
    ]
    yield f"used memory, the most in {width} s a column"
    yield from _memory_chart(report, columns)
    least = [min(second.parallelism for second in column) for column in columns]
    steps = [max(second.step for second in column) for column in columns]
    yield _charted("parallelism", map(str, least))
    yield _charted("memory step", map(str, steps))
    if report.transitions:
        order = list(BREAKER)
        worst = [max((second.breaker for second in column), key=order.index) for column in columns]
        yield _charted("breaker", (BREAKER[state] for state in worst))


def _memory_chart(report: SimulationReport, columns: Sequence[Sequence[Second]]) -> Iterator[str]:
    top_bytes = max(report.limit_bytes, report.peak_bytes)
    rows = [max(second.used_bytes for second in column) * ROWS / top_bytes for column in columns]
    labels = {
        min(ROWS - 1, round(n_bytes * ROWS / top_bytes)): label
        for label, n_bytes in (("limit", report.limit_bytes), ("line", report.line_bytes))
    }
    for row in reversed(range(ROWS)):
        blank = RULE if row in labels else " "
        eighths = [min(8, max(0, round(8 * (height - row)))) for height in rows]
        cells = (EIGHTHS[n] if n else blank for n in eighths)
        yield _charted(labels.get(row, ""), cells)


def _charted(label: str, cells: Iterator[str]) -> str:
    return f"{label:>17} {''.join(cells)}".rstrip()


def _shortened(changes: Sequence[str]) -> list[str]:
    more = len(changes) - MOST_CHANGES
    return [*changes[:MOST_CHANGES], f"{more} more"] if more > 0 else list(changes)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
