"""The command line: `plimsoll COMMAND`. Each command is a module, which calls one use case.

Heavy modules are imported inside the commands, so that `plimsoll --help` is quick.
"""

import errno
import os
import sys
from typing import Any, NoReturn

import click

from plimsoll import __version__
from plimsoll.cli import FAILED, INTERRUPTED
from plimsoll.cli.backup import backup
from plimsoll.cli.bench import bench
from plimsoll.cli.cache import cache
from plimsoll.cli.capacity import capacity
from plimsoll.cli.collections import collections
from plimsoll.cli.config import config
from plimsoll.cli.doctor import doctor
from plimsoll.cli.embed import embed
from plimsoll.cli.help import Group
from plimsoll.cli.hooks import hooks
from plimsoll.cli.inspect import inspect
from plimsoll.cli.links import links
from plimsoll.cli.migrate import migrate
from plimsoll.cli.models import models
from plimsoll.cli.pull import pull
from plimsoll.cli.rm import rm
from plimsoll.cli.serve import serve
from plimsoll.cli.simulate import simulate
from plimsoll.cli.verify import verify
from plimsoll.errors import PlimsollError


class _Commands(Group):
    """Turns what goes wrong outside the program into one line and exit code 2.

    That is every error that Plimsoll raises on purpose, and what the system refuses, such as a
    full disk.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command that the arguments name, and exit."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            _leave(error)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PlimsollError as error:
            click.echo(f"plimsoll: {error}", err=True)
            ctx.exit(FAILED)
        except KeyboardInterrupt:  # which click would end with 1
            ctx.exit(INTERRUPTED)
        except click.Abort as abort:  # a prompt's no, or its Ctrl-C
            if isinstance(abort.__context__, KeyboardInterrupt):
                ctx.exit(INTERRUPTED)
            raise


def _leave(error: OSError) -> NoReturn:
    """Say in one line what the system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        # Standard output cannot take what still stands in its buffer either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        click.echo("plimsoll: standard output is full", err=True)
    elif isinstance(error, FileNotFoundError) and error.filename is None:
        click.echo("plimsoll: the working folder is gone; change to another", err=True)
    else:
        click.echo(f"plimsoll: {error}", err=True)
    sys.exit(FAILED)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Every option of a setting can be a variable, a line in .env or in plimsoll.toml too: "
    "`plimsoll config` says what holds and why.",
)
@click.version_option(__version__, prog_name="plimsoll")
def main() -> None:
    """Text embeddings inside a memory budget."""
    if sys.platform == "win32":
        raise click.ClickException("Plimsoll does not run on Windows; use its Docker image there")


main.add_commands("Run", [serve, embed, migrate, hooks])
main.add_commands("Models", [models, pull, rm, inspect, verify, cache])
main.add_commands("Collections", [collections, links, backup])
main.add_commands("Look and measure", [doctor, config, bench, simulate, capacity])
