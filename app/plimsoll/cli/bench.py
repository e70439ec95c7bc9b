"""`plimsoll bench`: load on a running server, and what became of every request."""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from plimsoll.cli.help import CommandWithParts
from plimsoll.cli.peers import peers
from plimsoll.cli.report_options import FILE, GIVEN, grouped, writable
from plimsoll.cli.server_options import header_of, own_url

if TYPE_CHECKING:
    from plimsoll.bench.load.plan import LoadPlan

DEFAULT_CLIENTS = 8
DEFAULT_SECONDS = 30.0


@click.group(cls=CommandWithParts, invoke_without_command=True)
@grouped(
    "Load",
    "--url",
    show_default="http://PLIMSOLL_HOST:PLIMSOLL_PORT",
    metavar="URL",
    help="The server.",
)
@grouped(
    "Load",
    "--clients",
    type=int,
    metavar="NUMBER",
    help=f"Closed loop: each sends when it has its answer. [default: {DEFAULT_CLIENTS}]",
)
@grouped("Load", "--rate", type=float, metavar="NUMBER", help="Open loop: requests a second.")
@grouped("Load", "--ramp", metavar="FROM:TO", help="Open loop at a rate that changes.")
@grouped("Load", "--constant", is_flag=True, help="Evenly spaced; else a Poisson process.")
@grouped(
    "Load",
    "--seconds",
    type=float,
    metavar="SECONDS",
    help=f"Length of the run. [default: {DEFAULT_SECONDS:g}, unless --requests ends it]",
)
@grouped("Load", "--requests", type=int, metavar="NUMBER", help="End after so many.")
@grouped(
    "Load",
    "--timeout",
    type=float,
    default=60.0,
    metavar="SECONDS",
    help="Patience with each.",
)
@grouped(
    "Load",
    "--max-in-flight",
    type=int,
    metavar="NUMBER",
    help="Connections of an open loop. [default: 512]",
)
@grouped("Load", "--honour-retry-after", is_flag=True, help="Closed loop: wait as long as told.")
@grouped("Load", "--allow-remote", is_flag=True, help="The target may be another machine.")
@grouped(
    "Requests",
    "--mix",
    default="short",
    metavar="KIND=WEIGHT,…",
    help="Kinds of requests and how often each comes.",
)
@grouped(
    "Requests",
    "--texts",
    type=GIVEN,
    metavar="FILE",
    help='JSON lines with a "text" each to draw from; else texts are made up.',
)
@grouped(
    "Requests",
    "--huge-tokens",
    type=int,
    metavar="NUMBER",
    help="Length of the kind huge. [default: 8192]",
)
@grouped(
    "Requests", "--fresh", is_flag=True, help="Send no body twice: no cache answers, more CPU here."
)
@grouped(
    "Requests",
    "--header",
    "headers",
    multiple=True,
    metavar="NAME:VALUE",
    help="Sent with each; may be repeated. A server with keys needs 'Authorization: Bearer KEY'.",
)
@grouped("Requests", "--seed", type=int, default=7, metavar="NUMBER", help="Other requests.")
@grouped(
    "Checks",
    "--verify",
    type=int,
    default=0,
    metavar="NUMBER",
    help="Compare the vectors of so many short texts with the quiet server's.",
)
@grouped("Checks", "--exact", is_flag=True, help="Compare bit by bit, not within 1e-6.")
@grouped("Checks", "--max-failed", type=float, metavar="RATIO", help="Exit with 1 above: 0.01.")
@grouped("Checks", "--min-dense", type=float, metavar="RATIO", help="Exit with 1 below: 0.99.")
@grouped("Checks", "--max-p99", type=float, metavar="SECONDS", help="Exit with 1 above.")
@grouped(
    "Report",
    "--json",
    "json_file",
    type=FILE,
    callback=writable,
    metavar="FILE",
    help="Write every figure there, second by second.",
)
@grouped(
    "Report",
    "--html",
    "html_file",
    type=FILE,
    callback=writable,
    metavar="FILE",
    help="Write charts there.",
)
@grouped(
    "Report",
    "--baseline",
    type=GIVEN,
    metavar="FILE",
    help="Set this run beside an earlier one, from its --json.",
)
def bench(**given: Any) -> None:
    """Put load on a running server, and say what became of every request.

    A closed loop (--clients) finds out what the server can do; an open loop (--rate, --ramp) what
    its users would see, for they do not wait for each other. Latency counts from when a request
    was due: a server that stalls cannot hide it by holding up the requests behind.

    \b
      plimsoll bench --clients 32 --seconds 90 --mix short=60,long=10
      plimsoll bench --ramp 5:50 --verify 64 --max-failed 0.01
      plimsoll bench --rate 20 --json now.json --baseline before.json

    \b
    Kinds for --mix:
      short       one text; --verify compares its vector
      long        one text of 2,000 words
      list        50 texts
      list500     500 short texts; likewise any number up to 99,999
      huge        one text of --huge-tokens tokens
      body20      a body of 20 MB: one text, which the server cuts
      body20list  a body of 20 MB: a list of 1,000 words a text
      hangup      50 texts, by a client that closes the connection
                  when it has sent them
      malformed   bad JSON, wrong types, a body that breaks off;
                  a 4xx is the right answer

    \b
    Columns:
      dense       answered with vectors
      sparse      answered by the fallback, as the reply says
      refused     429, 413, or 503 with Retry-After
      rejected    a malformed request, as due
      failed      no reply, any other status, a malformed reply,
                  an answer missing or a wrong vector
      hung up     by this client

    Latency is that of dense and sparse replies and of requests that were not answered in time.

    The exit code is 0; 1 when a threshold (--max-failed, --min-dense, --max-p99) is not held; 2
    when the run could not begin, nothing was answered, or an answer ended it that every request
    would get (401, 403, 404, 405); 130 after Ctrl-C, which reports what there is.
    """
    context = click.get_current_context()
    if part := context.invoked_subcommand:
        if typed := _typed(context):
            raise click.UsageError(
                f"{typed[0]} is an option of the load test: those of `bench {part}` stand behind it"
            )
        return
    from plimsoll.bench.load.command import Outputs, run_and_report
    from plimsoll.bench.load.input_files import InputFileError, read_run
    from plimsoll.bench.load.plan import PlanError
    from plimsoll.bench.load.report import Thresholds

    thresholds = Thresholds(given["max_failed"], given["min_dense"], given["max_p99"])
    try:
        plan = plan_of(given)
        baseline = read_run(given["baseline"]) if given["baseline"] else None
    except (PlanError, InputFileError) as error:
        raise click.UsageError(str(error)) from None
    outputs = Outputs(given["json_file"], given["html_file"], baseline)
    sys.exit(run_and_report(plan, thresholds, outputs))


bench.add_command(peers)


def _typed(context: click.Context) -> list[str]:
    """The options that stand before a further command."""
    return [
        option.opts[0]
        for option in context.command.params
        if option.name and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]


def _passed_over(given: Mapping[str, Any], plan: "LoadPlan") -> Iterator[str]:
    """Options that this plan would pass over in silence, and what each goes with."""
    if plan.rate is None and given["constant"]:
        yield "--constant goes with --rate or --ramp"
    if plan.rate is None and given["max_in_flight"] is not None:
        yield "--max-in-flight goes with --rate or --ramp"
    if plan.rate is not None and plan.honour_retry_after:
        yield "--honour-retry-after goes with --clients"
    if plan.exact and not plan.n_verified:
        yield "--exact goes with --verify"
    if given["huge_tokens"] is not None and "huge" not in plan.mix:
        yield "--huge-tokens goes with the kind huge in --mix"


def _first(given: int | None, otherwise: int) -> int:
    """What was given, 0 too."""
    return otherwise if given is None else given


def plan_of(given: dict[str, Any]) -> "LoadPlan":
    """The plan that the options ask for. Raises PlanError, OSError and InputFileError."""
    from plimsoll.bench.load.arrivals import Rate
    from plimsoll.bench.load.input_files import read_texts
    from plimsoll.bench.load.plan import HUGE_TOKENS, MOST_IN_FLIGHT, LoadPlan, PlanError, parse_mix

    speeds = [name for name in ("clients", "rate", "ramp") if given[name] is not None]
    if len(speeds) > 1:
        raise PlanError(f"choose one of --{' and --'.join(speeds)}")
    rate = None
    if given["ramp"] is not None or given["rate"] is not None:
        first, _, last = (given["ramp"] or f"{given['rate']}:{given['rate']}").partition(":")
        try:
            rate = Rate(float(first), float(last), not given["constant"])
        except ValueError:
            raise PlanError(f"{given['ramp']!r} is not a ramp, such as 5:50") from None
    is_endless = given["seconds"] is None and given["requests"] is None
    plan = LoadPlan(
        url=given["url"] or own_url(),
        mix=parse_mix(given["mix"]),
        n_clients=None if rate else _first(given["clients"], DEFAULT_CLIENTS),
        rate=rate,
        seconds=DEFAULT_SECONDS if is_endless else given["seconds"],
        n_requests=given["requests"],
        texts=read_texts(given["texts"]) if given["texts"] else (),
        huge_tokens=_first(given["huge_tokens"], HUGE_TOKENS),
        fresh=given["fresh"],
        n_verified=given["verify"],
        exact=given["exact"],
        honour_retry_after=given["honour_retry_after"],
        timeout_s=given["timeout"],
        max_in_flight=_first(given["max_in_flight"], MOST_IN_FLIGHT),
        headers=dict(header_of(text) for text in given["headers"]),
        allow_remote=given["allow_remote"],
        seed=given["seed"],
    )
    if passed_over := next(_passed_over(given, plan), None):
        raise PlanError(passed_over)
    return plan
