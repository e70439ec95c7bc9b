"""`plimsoll hooks`: which hooks a running server knows, and one of them asked now."""

import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from plimsoll.cli import FAILED
from plimsoll.cli.help import Group
from plimsoll.cli.server_options import asks_server, client_of, show

STOPPED = 1
"""Exit code of a hook that says no."""


@click.group(cls=Group)
def hooks() -> None:
    """Show and try the hooks that migrations may name.

    They are asked before, during and after a migration's run, and may stop it. The built-in ones
    are always there; PLIMSOLL_HOOKS of the server names a file with others.
    """


@hooks.command("list")
@asks_server
def list_hooks(**given: Any) -> None:
    """Show every hook: when it is asked, and what it does."""
    from plimsoll.cli.migration_tables import print_hooks

    show(client_of(given).request("GET", "/hooks")["hooks"], given, print_hooks)


@hooks.command()
@click.argument("name")
@click.option(
    "--migration", type=click.IntRange(min=1), metavar="NUMBER", help="That it is to look at."
)
@asks_server
def run(name: str, migration: int | None, **given: Any) -> None:
    """Ask a hook now; nothing is stopped by it, and nothing written down.

    \b
    The exit code is 0 where it says yes, 1 where it says no, and 2 where it
    gives no answer, the server refused or does not answer.
    """
    answer = client_of(given).request(
        "POST", f"/hooks/{quote(name, safe='')}/run", {"migration": migration}
    )
    show(answer, given, _print_answer)
    if answer["outcome"] != "passed":
        sys.exit(STOPPED if answer["outcome"] == "stopped" else FAILED)


def _print_answer(answer: Mapping[str, Any]) -> None:
    from plimsoll.cli.migration_tables import print_hook_answers

    print_hook_answers([answer])
    for name, figure in answer["figures"].items():
        click.echo(f"  {name}: {figure}")
