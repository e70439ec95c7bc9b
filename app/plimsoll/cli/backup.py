"""`plimsoll backup`: a copy of the collections, also while a server uses them."""

from pathlib import Path
from typing import Any

import click

from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options
from plimsoll.sizes import rounded


@click.command(cls=Command)
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@setting_options("data_dir")
def backup(target: Path, **overrides: Any) -> None:
    """Write the collections as they are at one moment into the new file TARGET.

    To go back, stop the server and put the copy in the place of collections.sqlite3.
    """
    from plimsoll.corpora.database import FILE_NAME, back_up

    if target.exists():
        raise click.ClickException(f"{target} is there already")
    back_up(load(overrides).settings.data_dir / FILE_NAME, target)
    click.echo(f"{rounded(target.stat().st_size)} written to {target}")
