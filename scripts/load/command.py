"""The command line of the load test: options in, table, files and an exit code out."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from .arrivals import Rate
from .bodies import SHORT
from .chart import page
from .plan import LoadPlan, PlanError, parse_mix
from .progress import Progress
from .report import LoadReport, Thresholds
from .runner import QuietPassError, run_load
from .table import table
from .texts import read_texts

DEFAULT_CLIENTS = 8
DEFAULT_SECONDS = 30.0
MISSED, UNUSABLE, INTERRUPTED = 1, 2, 130


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    plan: LoadPlan
    thresholds: Thresholds
    json: Path | None
    html: Path | None


def main(description: str, arguments: Sequence[str] | None = None) -> int:
    """Run the load test; returns the exit code."""
    try:
        options = parse(description, arguments)
    except (PlanError, OSError, ValueError) as error:
        sys.stderr.write(f"load test: {error}\n")
        return UNUSABLE
    try:
        report = asyncio.run(_run(options.plan))
    except QuietPassError as error:
        sys.stderr.write(f"load test: the quiet server did not embed the samples: {error}\n")
        return UNUSABLE
    misses = options.thresholds.misses(report)
    sys.stdout.write(table(report, misses))
    if options.json:
        found = report.as_dict() | {"misses": misses}
        options.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    if options.html:
        options.html.write_text(page(report, misses), encoding="utf-8")
    if report.interrupted:
        return INTERRUPTED
    return MISSED if misses else 0


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
        return await run_load(plan, stop=stop, watch=progress.show)
    finally:
        progress.clear()
        loop.remove_signal_handler(signal.SIGINT)


def parse(description: str, arguments: Sequence[str] | None = None) -> Options:
    """Options from the command line. Raises PlanError, OSError and ValueError."""
    found = _parser(description).parse_args(arguments)
    rate = _rate(found)
    n_clients = DEFAULT_CLIENTS if found.clients is None and rate is None else found.clients
    is_endless = found.seconds is None and found.requests is None
    plan = LoadPlan(
        url=found.url,
        mix=parse_mix(found.mix),
        n_clients=n_clients,
        rate=rate,
        seconds=DEFAULT_SECONDS if is_endless else found.seconds,
        n_requests=found.requests,
        texts=read_texts(found.texts) if found.texts else (),
        huge_tokens=found.huge_tokens,
        fresh=found.fresh,
        n_verified=found.verify,
        exact=found.exact,
        honour_retry_after=found.honour_retry_after,
        timeout_s=found.timeout,
        max_in_flight=found.max_in_flight,
        headers=dict(_header(text) for text in found.header),
        allow_remote=found.allow_remote,
        seed=found.seed,
    )
    thresholds = Thresholds(found.max_failed, found.min_dense, found.max_p99)
    return Options(plan, thresholds, found.json, found.html)


def _rate(found: argparse.Namespace) -> Rate | None:
    if found.ramp:
        first, _, last = found.ramp.partition(":")
        try:
            return Rate(float(first), float(last), not found.constant)
        except ValueError:
            raise PlanError(f"{found.ramp!r} is not a ramp, such as 5:50") from None
    return Rate(found.rate, found.rate, not found.constant) if found.rate is not None else None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise PlanError("a header is NAME: VALUE")
    return name.strip(), value.strip()


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8080", help="the server (default %(default)s)")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--clients", type=int, metavar="N", help="closed loop (default 8 clients)")
    speed.add_argument("--rate", type=float, metavar="R", help="open loop, requests a second")
    speed.add_argument("--ramp", metavar="FROM:TO", help="open loop at a rate that changes")
    add("--constant", action="store_true", help="evenly spaced; else a Poisson process")
    add("--seconds", type=float, metavar="S", help="length of the run (default 30)")
    add("--requests", type=int, metavar="N", help="end after so many")
    add("--mix", default=SHORT, metavar="KIND=WEIGHT,…", help="kinds of requests (default short)")
    add("--texts", type=Path, metavar="FILE", help='JSONL with a "text" a line; else made up')
    add("--huge-tokens", type=int, default=8192, metavar="N", help="length of the kind huge")
    add("--fresh", action="store_true", help="build bodies anew: no cache answers; more CPU here")
    add("--verify", type=int, default=0, metavar="N", help="compare vectors of N short texts")
    add("--exact", action="store_true", help="compare bit by bit, not within 1e-6")
    add("--timeout", type=float, default=60.0, metavar="S", help="patience with a request")
    add("--max-in-flight", type=int, default=512, metavar="N", help="connections of an open loop")
    add("--honour-retry-after", action="store_true", help="closed loop: wait as long as told")
    add("--header", action="append", default=[], metavar="NAME:VALUE", help="may be repeated")
    add("--seed", type=int, default=7, metavar="N", help="other requests")
    add("--allow-remote", action="store_true", help="a target that is not this machine")
    add("--json", type=Path, metavar="FILE", help="write every figure there, second by second")
    add("--html", type=Path, metavar="FILE", help="write charts there")
    add("--max-failed", type=float, metavar="RATIO", help="exit with 1 above, such as 0.01")
    add("--min-dense", type=float, metavar="RATIO", help="exit with 1 below, such as 0.99")
    add("--max-p99", type=float, metavar="S", help="exit with 1 above")
    return parser
