"""`plimsoll migrate`: move a collection of a running server to another model, and back."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from plimsoll.cli.help import Group
from plimsoll.cli.job_file import MigrationJob, read_job
from plimsoll.cli.migration_run import begin, judged_queries, watch
from plimsoll.cli.report_options import FILE, GIVEN, writable
from plimsoll.cli.server_options import ToldWaits, asks_server, client_of, show


@click.group(cls=Group)
def migrate() -> None:
    """Move a collection of a running server to another model, and back.

    \b
      plimsoll migrate doctor ships
      plimsoll migrate plan ships --model nomic-embed-text-v1.5
      plimsoll migrate run ships --model nomic-embed-text-v1.5
      plimsoll migrate cutover 1
      plimsoll migrate rollback 1

    Searches read the old version until cut-over, and can be given it back until purge. The server
    does the work: a command that is stopped stops nothing, and `run` looks on again.

    \b
    The exit code is 0; of `run` and `validate` 1 when the verdict is not
    go; 2 when the server refused, failed or does not answer; 130 after
    Ctrl-C.
    """


_NUMBER = click.argument("number", type=click.IntRange(min=1))
_WHY = click.option("--why", default="", metavar="TEXT", help="For the audit.")
_MODEL = click.option("--model", required=True, metavar="NAME", help="A model that is served.")
_DIMENSIONS = click.option(
    "--dimensions", type=int, metavar="NUMBER", help="Values a vector. [default: the model's]"
)
_QUERIES = click.option(
    "--queries",
    type=GIVEN,
    metavar="FILE",
    help='Judged queries, JSON lines: {"query": …, "relevant": [IDS] or {ID: GRADE}}.',
)


@migrate.command()
@click.argument("collection")
@asks_server
def doctor(collection: str, **given: Any) -> None:
    """Look at a collection: sizes, norms, spaces, and what would stand in the way."""
    from plimsoll.cli.migration_tables import print_doctor

    report = client_of(given).request("GET", _path(collection, "doctor"))
    show(report, given, print_doctor)


@migrate.command()
@click.argument("collection")
@_MODEL
@_DIMENSIONS
@click.option(
    "--bridge",
    is_flag=True,
    help="Fit a bridge on up to 2000 documents, and say what it is worth; takes minutes.",
)
@asks_server
def plan(collection: str, model: str, dimensions: int | None, bridge: bool, **given: Any) -> None:
    """Say what a move would take: tokens, time, disk."""
    from plimsoll.cli.migration_tables import print_plan

    asked = {"model": model, "dimensions": dimensions, "bridge": bridge}
    client = client_of(given, ToldWaits())
    show(client.request("POST", _path(collection, "plan"), asked), given, print_plan)


@migrate.command()
@click.argument("collection", required=False, metavar="COLLECTION|JOB.toml")
@click.option("--model", metavar="NAME", help="A model that is served.")
@_DIMENSIONS
@_QUERIES
@click.option(
    "--hook", "hooks", multiple=True, metavar="NAME", help="Asked too; see `plimsoll hooks list`."
)
@click.option(
    "--progressive",
    is_flag=True,
    help="Searches read both versions meanwhile, each document by its newest vector.",
)
@click.option(
    "--bridge",
    is_flag=True,
    help="Let searches find documents by bridged vectors until they are embedded.",
)
@click.option("--force-bridge", is_flag=True, help="Likewise, at any retention.")
@click.option("--job", type=GIVEN, metavar="JOB.toml", help="A file that says all of this.")
@_WHY
@asks_server
def run(
    collection: str | None,
    model: str | None,
    dimensions: int | None,
    queries: Path | None,
    hooks: tuple[str, ...],
    progressive: bool,
    bridge: bool,
    force_bridge: bool,
    job: Path | None,
    why: str,
    **given: Any,
) -> None:
    """Begin a migration, or go on with it, and wait for its verdict.

    \b
    A job file can live in git. It names the collection, the model, a file of
    judged queries and hooks, and no command, address or key:
      collection = "ships"
      model = "nomic-embed-text-v1.5"
      queries = "queries.jsonl"     # beside this file
      hooks = ["validate-memory", "notify"]
      bridge = "gated"              # or "forced"
    """
    is_job = collection is not None and model is None and collection.endswith(".toml")
    if is_job and job is None:
        collection, job = None, Path(collection or "")
    options = {
        "collection": collection,
        "model": model,
        "dimensions": dimensions,
        "queries": queries,
        "hooks": hooks,
        "progressive": progressive,
        "bridge": "forced" if force_bridge else "gated" if bridge else None,
        "why": why,
    }
    asked = _asked(job, options)
    client = client_of(given, ToldWaits())
    watch(client, begin(client, asked), given)


@migrate.command()
@click.argument("number", type=click.IntRange(min=1), required=False)
@asks_server
def status(number: int | None, **given: Any) -> None:
    """Show every migration, or all about one."""
    from plimsoll.cli.migration_tables import print_migration, print_migrations

    client = client_of(given)
    if number is not None:
        show(client.request("GET", f"/migrations/{number}"), given, print_migration)
        return
    found = client.request("GET", "/migrations")["migrations"]
    show(found, given, print_migrations)


@migrate.command()
@_NUMBER
@click.option(
    "--html",
    type=FILE,
    callback=writable,
    metavar="FILE",
    help="Write one page with pictures, which loads nothing.",
)
@asks_server
def report(number: int, html: Path | None, **given: Any) -> None:
    """Tell all about a migration: verdict, old beside new, how it went, hooks, audit."""
    from plimsoll.cli.migration_page import migration_page
    from plimsoll.cli.migration_tables import print_migration

    found = client_of(given).request("GET", f"/migrations/{number}/report")
    if html is not None:
        html.write_text(migration_page(found), encoding="utf-8")
        click.echo(f"wrote {html}", err=True)
    if html is None or given["as_json"]:
        show(found, given, lambda found: print_migration(found["migration"]))


@migrate.command()
@_NUMBER
@_QUERIES
@_WHY
@asks_server
def validate(number: int, queries: Path | None, why: str, **given: Any) -> None:
    """Judge a ready, failed or rolled back migration again, and wait for its verdict."""
    client = client_of(given)
    judged = None if queries is None else judged_queries(queries)
    client.request("POST", f"/migrations/{number}/validate", {"queries": judged, "why": why})
    watch(client, number, given)


@migrate.command()
@_NUMBER
@click.option("--force", is_flag=True, help="Also where the verdict is not go.")
@_WHY
@asks_server
def cutover(number: int, force: bool, why: str, **given: Any) -> None:
    """Let searches read the new version; the verdict has to be go."""
    _change("cutover", number, {"force": force, "why": why}, given)


@migrate.command()
@_NUMBER
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    required=True,
    metavar="NUMBER",
    help="Of the searches by meaning, from 0, none, to 1, all.",
)
@_WHY
@asks_server
def shadow(number: int, share: float, why: str, **given: Any) -> None:
    """Ask the new version what clients ask the old one, and compare; `status` shows how far both
    agree.
    """
    _change("shadow", number, {"share": share, "why": why}, given)


@migrate.command()
@_NUMBER
@click.argument("switch", type=click.Choice(["on", "off"]))
@_WHY
@asks_server
def progressive(number: int, switch: str, why: str, **given: Any) -> None:
    """Let searches read both versions before cut-over, or the old one alone."""
    _change("progressive", number, {"on": switch == "on", "why": why}, given)


@migrate.command()
@_NUMBER
@_WHY
@asks_server
def rollback(number: int, why: str, **given: Any) -> None:
    """Let searches read the old version again."""
    _change("rollback", number, {"why": why}, given)


@migrate.command()
@_NUMBER
@_WHY
@asks_server
def pause(number: int, why: str, **given: Any) -> None:
    """Stop embedding for now; `run` goes on."""
    _change("pause", number, {"why": why}, given)


@migrate.command()
@_NUMBER
@_WHY
@asks_server
def cancel(number: int, why: str, **given: Any) -> None:
    """Give up before cut-over, and drop the new version."""
    _change("cancel", number, {"why": why}, given)


@migrate.command()
@_NUMBER
@_WHY
@asks_server
def purge(number: int, why: str, **given: Any) -> None:
    """Drop the version that searches do not read; there is no way back."""
    _change("purge", number, {"why": why}, given)


def _change(verb: str, number: int, asked: dict[str, Any], given: dict[str, Any]) -> None:
    from plimsoll.cli.migration_tables import print_migrations

    changed = client_of(given).request("POST", f"/migrations/{number}/{verb}", asked)
    show(changed, given, lambda migration: print_migrations([migration]))


def _asked(job: Path | None, options: dict[str, Any]) -> MigrationJob:
    """What is to be moved where, from a job file or from options. Raises click.UsageError."""
    if job is None:
        missing = {"collection": "COLLECTION", "model": "--model"}
        for name, told in missing.items():
            if options[name] is None:
                raise click.UsageError(f"{told} is missing; or give a job file")
        given = {**options, "hooks": [*options["hooks"]], "bridge": options["bridge"] or "none"}
        return MigrationJob(**given)
    if beside := [name for name, value in options.items() if value and name != "why"]:
        raise click.UsageError(f"the job file says all of it; leave out {' and '.join(beside)}")
    found = read_job(job)
    return replace(found, why=options["why"] or found.why)


def _path(collection: str, part: str) -> str:
    return f"/collections/{quote(collection, safe='')}/{part}"
