"""Options of the commands that measure: in groups, with files to read and reports to write."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

from plimsoll.cli.help import GroupedOption

FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
GIVEN = click.Path(exists=True, dir_okay=False, path_type=Path)


def grouped(
    group: str, *names: str, **told: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option under a heading of the help."""
    return click.option(*names, cls=GroupedOption, group=group, **told)


def writable(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Refuse before the run what could not be written after it."""
    if path is None or path.exists():
        return path
    folder = path.absolute().parent
    if not folder.is_dir():
        raise click.BadParameter(f"there is no folder {folder}")
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise click.BadParameter(f"no file can be made in {folder}: {error.strerror}") from None
    return path
