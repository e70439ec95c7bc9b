"""`plimsoll capacity`: how many servers a load or a corpus takes, from one that was measured."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plimsoll.cli.help import CommandWithParts
from plimsoll.cli.model_shape import shape_of
from plimsoll.cli.report_options import FILE, GIVEN, writable
from plimsoll.cli.server_options import header_of, own_url
from plimsoll.cli.tables import print_table

if TYPE_CHECKING:
    from plimsoll.bench.capacity.figures import Figures
    from plimsoll.bench.capacity.loads import Answer
    from plimsoll.bench.capacity.plan import CapacityPlan

HOUR_S, DAY_S, YEAR_S = 3600, 86_400, 31_557_600


@click.group(cls=CommandWithParts)
def capacity() -> None:
    """Say how many servers a load takes, and how long a corpus.

    \b
      plimsoll capacity measure --json float32.json
      plimsoll capacity plan float32.json --requests-per-s 500 --tokens 32 --p99 0.2
    """


@capacity.command()
@click.option(
    "--url",
    show_default="http://PLIMSOLL_HOST:PLIMSOLL_PORT",
    metavar="URL",
    help="The server, with nothing else to do.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=15.0,
    metavar="SECONDS",
    help="Length of each of three loads.",
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME:VALUE",
    help="Sent with each request; may be repeated.",
)
@click.option("--allow-remote", is_flag=True, help="The server may be on another machine.")
@click.option(
    "--json",
    "json_file",
    type=FILE,
    callback=writable,
    required=True,
    metavar="FILE",
    help="Write the figures there.",
)
def measure(
    url: str | None,
    seconds: float,
    headers: tuple[str, ...],
    allow_remote: bool,
    json_file: Path,
) -> None:
    """Measure a running server: a short text alone, many of them, and lists."""
    from plimsoll.bench.capacity.measure import MeasureError
    from plimsoll.bench.capacity.measure import measure as run
    from plimsoll.bench.load.plan import PlanError
    from plimsoll.bench.load.progress import Progress

    progress = Progress(sys.stderr)
    try:
        figures = asyncio.run(
            run(
                url or own_url(),
                dict(header_of(text) for text in headers),
                seconds=seconds,
                allow_remote=allow_remote,
                say=lambda told: click.echo(told, err=True),
                watch=progress.show,
            )
        )
    except (MeasureError, PlanError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        progress.clear()
    json_file.write_text(json.dumps(figures.as_dict(), indent=2) + "\n", encoding="utf-8")
    _print_servers([figures])


@capacity.command()
@click.argument("files", nargs=-1, required=True, type=GIVEN)
@click.option(
    "--requests-per-s",
    type=click.FloatRange(0, 1e7, min_open=True),
    metavar="NUMBER",
    help="The load; without it, only corpora.",
)
@click.option(
    "--texts",
    "n_texts",
    type=click.IntRange(1, 10_000),
    default=1,
    metavar="NUMBER",
    help="In each request.",
)
@click.option(
    "--tokens", type=click.IntRange(1, 100_000), default=32, metavar="NUMBER", help="Of each text."
)
@click.option(
    "--p99",
    "p99_s",
    type=click.FloatRange(0.001, 600),
    default=0.25,
    metavar="SECONDS",
    help="99 of 100 requests are to be answered within this.",
)
@click.option(
    "--document-tokens",
    type=click.IntRange(1, 100_000),
    default=256,
    metavar="NUMBER",
    help="Of each document of a corpus.",
)
@click.option(
    "--days",
    type=click.FloatRange(0, 3650, min_open=True),
    default=1.0,
    metavar="NUMBER",
    help="Within which a corpus is to be embedded.",
)
@click.option(
    "--core-hour-price",
    type=click.FloatRange(0, 1e6),
    metavar="NUMBER",
    help="What a processor costs an hour, in any currency.",
)
@click.option(
    "--model",
    metavar="MODEL",
    help="Whose shape it is, where the measured model's is not known here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    files: tuple[Path, ...],
    requests_per_s: float | None,
    n_texts: int,
    tokens: int,
    p99_s: float,
    model: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Say what a load and corpora take, from FILES of `plimsoll capacity measure`.

    Several files stand side by side: float32 and int8, or machines of two kinds.
    """
    from plimsoll.bench.capacity.figures import FiguresError, read_figures
    from plimsoll.bench.capacity.loads import Load
    from plimsoll.bench.capacity.plan import plan_for

    try:
        measured = [read_figures(path) for path in files]
    except FiguresError as error:
        raise click.UsageError(str(error)) from None
    load = None
    if requests_per_s is not None:
        load = Load(requests_per_s, n_texts, tokens, p99_s)
    plans = []
    for figures in measured:
        architecture, token_limit = shape_of(model or figures.model)
        if tokens > token_limit:
            raise click.UsageError(
                f"--tokens is {tokens}, and {figures.model} cuts texts at {token_limit}"
            )
        plans.append(plan_for(figures, architecture, load, **given))
    if as_json:
        click.echo(json.dumps([each.as_dict() for each in plans]))
        return
    _print_servers([each.figures for each in plans])
    if load is not None:
        click.echo(
            f"\n{load.requests_per_s:,g} requests a second of {load.n_texts} × {load.tokens} "
            f"tokens, 99 of 100 within {load.p99_s * 1000:,g} ms"
        )
        _print_load([(each.figures, each.answer, each.first_limit) for each in plans])
    for each in plans:
        _print_corpora(each, given["document_tokens"], given["days"])
        _print_bottlenecks(each)


def _name(figures: "Figures") -> str:
    return f"{figures.model}, {figures.compute}, {figures.cores:g} cores"


def _print_servers(measured: "Sequence[Figures]") -> None:
    heads = (
        "one server",
        "tokens/s",
        "a core",
        "a request, ms",
        "a token, µs",
        "alone, ms",
        "at rest, MiB",
    )
    rows = [
        (
            _name(figures),
            f"{figures.list_tokens_per_s:,.0f}",
            f"{figures.list_tokens_per_s / figures.cores:,.0f}",
            f"{figures.request_s * 1e3:.2f}",
            f"{figures.token_s * 1e6:.0f}",
            f"{figures.lone_s * 1e3:.1f}",
            f"{figures.rest_bytes / (1 << 20):,.0f}",
        )
        for figures in measured
    ]
    print_table(heads, rows, numbers=heads[1:])


def _print_load(answers: "Sequence[tuple[Figures, Answer | None, str | None]]") -> None:
    heads = (
        "servers",
        "how many",
        "with one to spare",
        "each answers",
        "p99, ms",
        "budget, MiB",
        "first limit",
    )
    rows = []
    for figures, answer, limit in answers:
        if answer is None:
            continue
        n_servers = answer.n_servers
        rows.append(
            (
                _name(figures),
                "none is enough" if n_servers is None else f"{n_servers:,}",
                "" if n_servers is None else f"{n_servers + 1:,}",
                f"{answer.most_per_s:,.0f}/s",
                f"{(answer.alone_s if answer.p99_s is None else answer.p99_s) * 1000:,.0f}",
                f"{answer.budget_bytes / (1 << 20):,.0f}",
                limit or "",
            )
        )
    print_table(heads, rows, numbers=heads[1:-1])


def _print_corpora(plan: "CapacityPlan", document_tokens: int, days: float) -> None:
    click.echo(f"\n{_name(plan.figures)}: documents of {document_tokens} tokens")
    heads = ["documents", "one server", f"servers for {days:g} days", "core-hours", "vectors, GB"]
    is_priced = plan.corpora[0].cost is not None
    if is_priced:
        heads.append("cost")
    rows = [
        [
            f"{corpus.n_documents:,}",
            _duration(corpus.seconds),
            f"{corpus.n_servers:,}",
            f"{corpus.core_hours:,.0f}",
            f"{corpus.vector_bytes / 1e9:,.1f}",
            *([f"{corpus.cost:,.2f}"] if corpus.cost is not None else []),
        ]
        for corpus in plan.corpora
    ]
    print_table(heads, rows, numbers=heads)


def _print_bottlenecks(plan: "CapacityPlan") -> None:
    click.echo()
    rows = [(one.what, one.limit, one.remedy) for one in plan.bottlenecks]
    print_table(("what comes to its limit", "where", "what helps"), rows)


def _duration(seconds: float) -> str:
    for unit_s, unit in ((YEAR_S, "years"), (DAY_S, "days"), (HOUR_S, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:,.1f} {unit}"
    return f"{seconds:,.0f} s"
