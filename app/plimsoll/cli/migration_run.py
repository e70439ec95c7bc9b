"""A run as the command line sees it: begun or gone on with, and watched until its verdict."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plimsoll.cli import FAILED
from plimsoll.cli.job_file import MigrationJob
from plimsoll.cli.server_options import show

if TYPE_CHECKING:
    from plimsoll import Client

NOT_GO = 1
"""Exit code where a verdict is not go."""
JUDGED_QUERY = '{"query": "…", "relevant": ["ID", "…"]} or with grades, {"ID": 2}'


class StoppedError(click.ClickException):
    """A migration that stopped, or a file of queries that cannot be read."""

    exit_code = FAILED


def begin(client: "Client", asked: MigrationJob) -> int:
    """Begin a migration, or go on with the open one to this model. Returns its number.

    Raises StoppedError for options that an open one cannot take.
    """
    migration = _open_migration(client, asked.collection, asked.model)
    if migration is not None:
        _go_on(client, migration, asked)
        return int(migration["id"])
    begun = client.request(
        "POST",
        "/migrations",
        {
            "collection": asked.collection,
            "model": asked.model,
            "dimensions": asked.dimensions,
            "queries": judged_queries(asked.queries),
            "hooks": asked.hooks,
            "progressive": asked.progressive,
            "bridge": asked.bridge,
            "why": asked.why,
        },
    )
    return int(begun["id"])


def watch(client: "Client", number: int, given: dict[str, Any]) -> None:
    """Show how far it is until it has its verdict, and exit as that says."""
    from plimsoll.cli.migration_tables import print_migration
    from plimsoll.cli.migration_words import speed
    from plimsoll.cli.progress import progress_of

    migration = client.request("GET", f"/migrations/{number}")
    with progress_of(migration["collection"], "documents") as progress:
        for now in client.events(f"/migrations/{number}/events"):
            if now["state"] in ("running", "validating"):
                n_done = now["vectors"] + now["quarantined"]
                progress(n_done, now["documents"], now["state"], speed(now))
    migration = client.request("GET", f"/migrations/{number}")
    if migration["state"] not in ("ready", "cut_over", "rolled_back"):
        why = migration["failure"] or "something has changed its state, or the server stops"
        raise StoppedError(f"migration {number} is {migration['state']}: {why}")
    show(migration, given, print_migration)
    if migration["state"] != "cut_over":  # by another, meanwhile
        click.echo(f"\nnext: {next_step(migration)}", err=True)
    if migration["verdict"]["decision"] != "go":
        sys.exit(NOT_GO)


def next_step(migration: Mapping[str, Any]) -> str:
    """What to do about the verdict of a migration that is ready or rolled back."""
    number, verdict = migration["id"], migration["verdict"]
    if verdict["decision"] == "go":
        return f"`plimsoll migrate cutover {number}`"
    outcome = "undecided" if verdict["decision"] == "inconclusive" else "failed"
    names = [check["name"] for check in verdict["checks"] if check["outcome"] == outcome]
    look = (
        f"look at what is {outcome}: {', '.join(names)}; `plimsoll migrate report {number} --html "
        "FILE` has all figures."
    )
    if outcome == "undecided":
        return (
            f"{look} Judged queries of your own decide: `plimsoll migrate validate {number} "
            f"--queries FILE`; `plimsoll migrate cutover {number} --force` goes without"
        )
    end = "cancel" if migration["state"] == "ready" else "purge"
    return (
        f"{look} Once that is mended, `plimsoll migrate validate {number}`; "
        f"`plimsoll migrate {end} {number}` gives it up"
    )


def judged_queries(file: Path | None) -> list[dict[str, Any]]:
    """Judged queries of a file, one at least; none where there is no file. Raises StoppedError."""
    if file is None:
        return []
    judged = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            judged.append(_judged_query(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise StoppedError(f"{file} line {number} is no judged query: {error}") from error
    if not judged:  # else a verdict would be drawn without them
        raise StoppedError(f"{file} has no judged query; {JUDGED_QUERY}, one a line")
    return judged


def _judged_query(given: Any) -> dict[str, Any]:
    """With grades by id. Raises ValueError; TypeError for ids that are no text."""
    if not isinstance(given, dict) or not {"query", "relevant"} <= given.keys():
        raise ValueError(f"it takes {JUDGED_QUERY}")
    if isinstance(given["relevant"], list):
        return given | {"relevant": dict.fromkeys(given["relevant"], 1.0)}
    return given


def _go_on(client: "Client", migration: dict[str, Any], asked: MigrationJob) -> None:
    """Resume an open migration that rests. Raises StoppedError for options it cannot take."""
    number, size = migration["id"], migration["target"]["dimensions"]
    judged = judged_queries(asked.queries)
    others = f"`plimsoll migrate validate {number} --queries {asked.queries}` judges it by others"
    if judged and (differs := _differing(judged, migration)):
        raise StoppedError(
            f"migration {number} is open already, with {migration['judged_queries']} judged "
            f"queries, and {asked.queries} has {differs}: give `run` without them, and once it has "
            f"its verdict {others}"
        )
    if judged:
        click.echo(f"goes on with the {len(judged)} queries that it began with; {others}", err=True)
    if asked.dimensions not in (None, size):
        raise StoppedError(f"migration {number} is open already, to {size} dimensions")
    if asked.hooks and asked.hooks != migration["named_hooks"]:
        raise StoppedError(
            f"migration {number} is open already, with the hooks "
            f"{', '.join(migration['named_hooks']) or 'none'}; cancel it to begin with others"
        )
    if asked.progressive and not migration["progressive"]:
        client.request("POST", f"/migrations/{number}/progressive", {"on": True, "why": asked.why})
    if asked.bridge != "none" and asked.bridge != _bridge(migration):
        raise StoppedError(
            f"migration {number} is open already, with the bridge {_bridge(migration)!r}; cancel "
            f"it to begin with {asked.bridge!r}"
        )
    if migration["state"] in ("planned", "paused", "failed"):
        client.request("POST", f"/migrations/{number}/resume", {"why": asked.why})


def _differing(judged: list[dict[str, Any]], migration: dict[str, Any]) -> str | None:
    """In which way queries are other ones than those that a migration began with; None: the same.

    Raises StoppedError for what the server would not take.
    """
    from plimsoll.migration.judged import judged_sha256

    if len(judged) != migration["judged_queries"]:
        return str(len(judged))
    try:
        is_same = judged_sha256(judged) == migration["judged_queries_sha256"]
    except (ValueError, TypeError, AttributeError) as error:
        raise StoppedError(f"these are no judged queries: {error}") from error
    return None if is_same else "as many, but not the same: a text, a grade or a vector differs"


def _bridge(migration: dict[str, Any]) -> str:
    """As it was asked for."""
    if migration["bridge"] is None:
        return "none"
    return "forced" if migration["bridge"]["forced"] else "gated"


def _open_migration(client: "Client", collection: str, model: str) -> dict[str, Any] | None:
    """The one to this model that has not ended."""
    for migration in client.request("GET", "/migrations")["migrations"]:
        is_open = migration["state"] not in ("purged", "cancelled")
        is_this = (migration["collection"], migration["target"]["model"]) == (collection, model)
        if is_open and is_this:
            return dict(migration)
    return None
