"""`plimsoll simulate`: what would become of a trace of requests under a memory limit."""

import json
import math
import re
from typing import TYPE_CHECKING, Any, BinaryIO

import click

if TYPE_CHECKING:
    from app.encoder.architecture import Architecture

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MOST_BYTES = 1 << 50


def _size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A number of bytes as Docker writes it: 419430400, 400M, 1.5G; units are 1024-fold."""
    match = re.fullmatch(r"(\d{1,15})(?:(\.\d{1,6})?([KMG]))?", value.upper(), re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r} is no size; write 400M, 1.5G or plain bytes")
    whole, fraction, unit = match.groups(default="")
    n_bytes = round(float(whole + fraction) * UNITS[unit])
    if n_bytes > MOST_BYTES:
        raise click.BadParameter(f"{value!r} is more than {MOST_BYTES >> 30}G")
    return n_bytes


def _finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """What is not a number passes every range."""
    if math.isnan(value):
        raise click.BadParameter("NaN is not a number")
    return value


@click.command()
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
    type=click.File("rb"),
    required=True,
    help='JSON lines such as {"at_s": 0.5, "tokens": [32, 128]}: a request and the tokens of each '
    'of its texts. {"at_s": 9, "used_bytes_extra": 100000000}: from then on something else uses '
    'so much. {"at_s": 9, "memory_failure": true}: an allocation is refused. "-" reads standard '
    "input.",
)
@click.option(
    "--model",
    default="builtin",
    show_default=True,
    metavar="NAME|FILE",
    help="builtin, nomic-embed-text-v1.5 or a GGUF file, whose header alone is read.",
)
@click.option(
    "--floor",
    "floor_bytes",
    callback=_size,
    metavar="SIZE",
    default="70M",
    show_default=True,
    help="Memory at rest.",
)
@click.option(
    "--rate",
    "tokens_per_s",
    type=click.FloatRange(1, 1e6),
    callback=_finite,
    default=300.0,
    show_default=True,
    help="Tokens a second of the engine with all its threads.",
)
@click.option(
    "--threads",
    "n_threads",
    type=click.IntRange(1, 1024),
    default=2,
    show_default=True,
    help="Engine threads.",
)
@click.option(
    "--queue",
    "queue_s",
    type=click.FloatRange(1, 3600),
    callback=_finite,
    default=30.0,
    show_default=True,
    help="Seconds of work that may wait.",
)
@click.option(
    "--queue-timeout",
    "queue_timeout_s",
    type=click.FloatRange(0, 600),
    callback=_finite,
    default=5.0,
    show_default=True,
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
    from app.serving.simulation import simulate as run
    from app.serving.simulation_engine import SimulatedMachine
    from app.serving.simulation_text import render
    from app.serving.simulation_trace import parse_trace

    if floor_bytes >= limit_bytes:
        raise click.UsageError("--floor is not below --limit: nothing would be left for requests")
    architecture, token_limit = _shape(model)
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


def _shape(model: str) -> "tuple[Architecture, int]":
    """Architecture and token limit. Raises GGUFError and ModelErrors."""
    from app.encoder.architecture import read_architecture
    from app.encoder.catalog import SHAPES, describe, resolve
    from app.gguf.reader import read_header
    from app.gguf.sources import FileSource

    spec = resolve(model)
    if spec.path is None:
        known, architecture = spec.known, SHAPES.get(spec.name)
        if known is None or architecture is None:
            raise click.UsageError(f"the shape of {spec.name} is not known here; name its file")
    else:
        try:
            with FileSource(spec.path) as source:
                header = read_header(source)
        except OSError as error:
            raise click.UsageError(f"cannot open {spec.path}: {error.strerror}") from error
        known, architecture = describe(header.metadata), read_architecture(header)
    limit = known.token_limit or architecture.context_tokens
    scales = known.scales_rotation
    return architecture, limit if scales else min(limit, architecture.context_tokens)
