"""`plimsoll simulate`: what would become of a trace of requests under a memory limit."""

import io
import json
import math
import sys
from typing import Any, BinaryIO

import click

from plimsoll.cli.help import Command
from plimsoll.cli.model_shape import shape_of
from plimsoll.sizes import Size


def _size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        return Size.parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


def _finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """What is not a number passes every range."""
    if math.isnan(value):
        raise click.BadParameter("NaN is not a number")
    return value


class _TraceFile(click.File):
    """A file to read; a standard input that is closed is one at its end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Open what the option names."""
        if value == "-" and sys.stdin is None:
            return io.BytesIO()
        return super().convert(value, param, ctx)


@click.command(cls=Command)
@click.option(
    "--limit",
    "limit_bytes",
    callback=_size,
    required=True,
    metavar="SIZE",
    help="Memory limit: 400M, 1.5G or plain bytes.",
)
@click.option(
    "--trace",
    "trace",
    type=_TraceFile("rb"),
    required=True,
    help='JSON lines such as {"at_s": 0.5, "tokens": [32, 128]}: a request and the tokens of each '
    'of its texts; with "retries": 2 its client comes back so often when it is told to. '
    '{"at_s": 9, "used_bytes_extra": 100000000}: from then on something else uses '
    'so much. {"at_s": 9, "memory_failure": true}: an allocation is refused. {"at_s": 9, "cores": '
    '1.5, "others": 0.3}: so many cores, of which others take a share. {"at_s": 9, "reread_s": '
    '0.4}: each run reads the weights again. "-" reads standard input.',
)
@click.option(
    "--model",
    default="builtin",
    metavar="MODEL",
    help="builtin, nomic-embed-text-v1.5, or a model whose file is here: its header is read.",
)
@click.option(
    "--floor",
    "floor_bytes",
    callback=_size,
    metavar="SIZE",
    default="70M",
    help="Memory at rest.",
)
@click.option(
    "--rate",
    "tokens_per_s",
    type=click.FloatRange(1, 1e6),
    callback=_finite,
    default=300.0,
    metavar="NUMBER",
    help="Tokens a second of the engine with all its threads.",
)
@click.option(
    "--threads",
    "n_threads",
    type=click.IntRange(1, 1024),
    default=2,
    metavar="NUMBER",
    help="Engine threads.",
)
@click.option(
    "--queue",
    "queue_s",
    type=click.FloatRange(1, 3600),
    callback=_finite,
    default=30.0,
    metavar="SECONDS",
    help="Seconds of work that may wait.",
)
@click.option(
    "--queue-timeout",
    "queue_timeout_s",
    type=click.FloatRange(0, 600),
    callback=_finite,
    default=5.0,
    metavar="SECONDS",
    help="Seconds that a request waits for memory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every request and second.")
def simulate(
    limit_bytes: int, trace: BinaryIO, model: str, floor_bytes: int, as_json: bool, **options: Any
) -> None:
    """Replay a trace of requests through the server's own rules, without a server.

    Admission, breaker, scheduler and the choice of runs are the real code; the engine is a rate,
    and memory is what the server predicts it to be. Seconds or hours of a trace take moments.
    """
    from plimsoll.simulation.machine import SimulatedMachine
    from plimsoll.simulation.server import simulate as run
    from plimsoll.simulation.text import render
    from plimsoll.simulation.trace import parse_trace

    if floor_bytes >= limit_bytes:
        raise click.UsageError("--floor is not below --limit: nothing would be left for requests")
    architecture, token_limit = shape_of(model)
    try:
        events = parse_trace(trace)
    except ValueError as error:
        raise click.UsageError(f"--trace: {error}") from None
    machine = SimulatedMachine(
        limit_bytes=limit_bytes,
        architecture=architecture,
        token_limit=token_limit,
        floor_bytes=floor_bytes,
        **options,
    )
    report = run(events, machine)
    click.echo(json.dumps(report.as_dict()) if as_json else render(report))
