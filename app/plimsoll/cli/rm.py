"""`plimsoll rm`: a model's file and weights, removed from the cache folder."""

import shlex
import sys
from typing import Any

import click

from plimsoll.cli import FAILED
from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options
from plimsoll.sizes import rounded


@click.command(cls=Command)
@click.argument("model")
@click.option("--yes", is_flag=True, help="Do not ask.")
@setting_options("cache_dir")
def rm(model: str, yes: bool, **overrides: Any) -> None:
    """Remove MODEL from the cache: its download and its expanded weights.

    A file of yours outside the cache folder stays. While a process uses the weights, nothing is
    removed.
    """
    from plimsoll.composition.models import without_alias
    from plimsoll.encoder.catalog import resolve
    from plimsoll.models.removal import plan_removal, remove

    settings = load(overrides).settings
    cache_dir = settings.cache_dir
    removal = plan_removal(resolve(without_alias(model, settings)), cache_dir)
    if removal.kept is not None:
        click.echo(f"{removal.kept} stays: it lies outside {cache_dir}", err=True)
    if removal.file is None and not removal.sidecars:
        click.echo(f"nothing of {model} is in {cache_dir}", err=True)
        return
    for path in filter(None, (removal.file, *(entry.folder for entry in removal.sidecars))):
        click.echo(f"{path}", err=True)
    size = rounded(removal.n_bytes)
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            click.echo(
                "plimsoll: nothing was removed, for there is no terminal to ask on: "
                f"`plimsoll rm --yes {shlex.quote(model)}` removes these, {size}",
                err=True,
            )
            sys.exit(FAILED)
        click.confirm(f"Remove them, {size}?", abort=True, err=True)
    click.echo(f"{rounded(remove(removal, cache_dir))} freed")
