"""Run a load test, print its table and write its report; the exit code says how it went."""

import asyncio
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from plimsoll.bench.load.before_after import comparison
from plimsoll.bench.load.chart import page
from plimsoll.bench.load.plan import LoadPlan
from plimsoll.bench.load.progress import Progress
from plimsoll.bench.load.replies import remedy_of
from plimsoll.bench.load.report import LoadReport, Thresholds
from plimsoll.bench.load.runner import QuietPassError, run_load
from plimsoll.bench.load.server_facts import server_facts
from plimsoll.bench.load.table import table

MISSED, UNUSABLE, INTERRUPTED = 1, 2, 130


@dataclass(frozen=True)
class Outputs:
    """Where a report goes beside standard output, and the earlier run that it is set beside."""

    json: Path | None = None
    html: Path | None = None
    baseline: Mapping[str, Any] | None = None


def run_and_report(plan: LoadPlan, thresholds: Thresholds, outputs: Outputs) -> int:
    """Run the load test; returns the exit code."""
    try:
        report = asyncio.run(_run(plan))
    except QuietPassError as error:
        sys.stderr.write(f"plimsoll: the quiet server did not embed the samples: {error}\n")
        return UNUSABLE
    misses = thresholds.misses(report)
    _write(report, misses, outputs)
    if remedies := dict.fromkeys(filter(None, map(remedy_of, report.totals.causes))):
        sys.stderr.write(f"plimsoll: {'; '.join(remedies)}\n")
        return UNUSABLE
    if report.interrupted:
        return INTERRUPTED
    if not report.totals.n_replies:
        sys.stderr.write(f"plimsoll: nothing was answered at {plan.url}\n")
        return UNUSABLE
    return MISSED if misses else 0


def _write(report: LoadReport, misses: list[str], outputs: Outputs) -> None:
    found = report.as_dict() | {"misses": misses}
    changes = comparison(outputs.baseline, found) if outputs.baseline else []
    if outputs.json:
        outputs.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    if outputs.html:
        outputs.html.write_text(page(report, misses, changes), encoding="utf-8")
    # Last, so that a terminal that has gone costs no file.
    if sys.stdout is not None:
        sys.stdout.write(table(report, misses, changes))


async def _run(plan: LoadPlan) -> LoadReport:
    """Run until the plan's end or the first Ctrl-C; a second one breaks off."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    progress = Progress(sys.stderr)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        report = await run_load(plan, stop=stop, watch=progress.show)
        return replace(report, server=await server_facts(plan.url, plan.headers))
    finally:
        progress.clear()
        loop.remove_signal_handler(signal.SIGINT)
