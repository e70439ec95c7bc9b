"""A report as a table for people."""

from collections.abc import Iterable, Mapping, Sequence

from plimsoll.bench.load.before_after import HEADS as CHANGE_HEADS
from plimsoll.bench.load.report import Counts, LoadReport

COUNT_HEADS = ("", "sent", "dense", "sparse", "refused", "rejected", "failed", "hung up")
SPEED_HEADS = ("answers/s", "tokens/s", "p50", "p90", "p99", "max")
HEADS = (*COUNT_HEADS, *SPEED_HEADS)
# Above, the client's own delay is a part of what it measures.
LATE_S = 0.1
BUSY_RATIO = 0.7


def table(
    report: LoadReport, misses: Sequence[str] = (), changes: Sequence[Sequence[str]] = ()
) -> str:
    """Kinds and totals, what the causes were, what the run did not hold, and an earlier run.

    Counts and speeds stand one under the other: side by side they would not fit 80 columns.
    """
    rows = rows_of(report)
    n_counts = len(COUNT_HEADS)
    parts = [
        _aligned([COUNT_HEADS, *(row[:n_counts] for row in rows)]),
        _aligned([("", *SPEED_HEADS), *((row[0], *row[n_counts:]) for row in rows)]),
        [*facts_of(report), *remarks(report, misses)],
    ]
    if changes:
        parts.append(_aligned([CHANGE_HEADS, *changes]))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def facts_of(report: LoadReport) -> list[str]:
    """What the server says of itself, a line a fact."""
    return [f"{label}: {value}" for label, value in report.server.items()]


def rows_of(report: LoadReport) -> list[tuple[str, ...]]:
    """The cells under HEADS: a row a kind, and one for all."""
    named = [*report.by_kind.items(), ("total", report.totals)]
    return [_row(name, counts, report) for name, counts in named]


def remarks(report: LoadReport, misses: Sequence[str] = ()) -> list[str]:
    """What the table's figures need beside them to be understood."""
    totals, lag_s = report.totals, report.client.lag.p99_s or 0.0
    lines = [f"{report.seconds:.1f} s; latency counts from when a request was due"]
    if totals.refusal_latency.n:
        quick = totals.refusal_latency
        lines.append(f"refused and rejected: p50 {_time(quick.p50_s)}, p99 {_time(quick.p99_s)}")
    if totals.causes:
        lines.append(f"refused or failed: {_listed(totals.causes)}")
    if report.verification is not None:
        found = report.verification
        lines.append(
            f"vectors compared with the quiet server's: {found.n_compared:,}, wrong "
            f"{found.n_wrong}, largest difference {found.largest_difference:.3g}"
        )
    if lag_s > LATE_S:
        lines.append(f"requests were sent late: p99 {_time(lag_s)} after they were due")
    if report.client.cpu_s > BUSY_RATIO * report.seconds:
        share = report.client.cpu_s / report.seconds if report.seconds else 0.0
        lines.append(f"the client used {share:.0%} of a core: it may be the brake itself")
    if report.interrupted:
        lines.append(f"ended early; {totals.unfinished} requests were under way")
    return lines + [f"MISS: {miss}" for miss in misses]


def _row(name: str, counts: Counts, report: LoadReport) -> tuple[str, ...]:
    latency = counts.latency
    numbers = (counts.sent, counts.dense, counts.sparse, counts.refused, counts.rejected)
    return (
        name,
        *(f"{number:,}" for number in (*numbers, counts.failed, counts.hung_up)),
        _number(report.per_s(counts.dense + counts.sparse)),
        _number(report.per_s(counts.tokens)),
        *map(_time, (latency.p50_s, latency.p90_s, latency.p99_s, latency.max_s)),
    )


def _listed(causes: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} × {number:,}" for cause, number in causes.items())


def _number(value: float) -> str:
    """Three digits that matter; whole numbers above 100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{_number(seconds)} s"


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(_padded(row, widths)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Names to the left, numbers to the right."""
    cells = list(zip(row, widths, strict=True))
    return [cells[0][0].ljust(cells[0][1]), *(cell.rjust(width) for cell, width in cells[1:])]
