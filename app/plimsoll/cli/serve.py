"""`plimsoll serve`: the server."""

import os
import sys
from typing import Any

import click

from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options

CURL = """curl -s {url}/embed{key} -H 'Content-Type: application/json' -d '{{"input": "A mark"}}'"""
WELCOME = """
Plimsoll serves {model} at {url}

  try   {curl}
  see   {url} in a browser, and {url}/docs for every route
  more  PLIMSOLL_MODEL={other} serves another model; `plimsoll serve --help` lists the settings
  stop  Ctrl-C, or kill {process}
"""


@click.command(cls=Command)
@click.option(
    "--welcome/--no-welcome",
    default=None,
    help="Say at the start what to try next; by default on a terminal only.",
)
@setting_options()
def serve(welcome: bool | None, **overrides: Any) -> None:
    """Run the server."""
    settings = load(overrides).settings
    from plimsoll.composition.models import spec_of
    from plimsoll.encoder.known_models import NOMIC_V1_5
    from plimsoll.server.run import serve as run

    spec = spec_of(settings)
    other = "builtin" if spec.known is NOMIC_V1_5 else NOMIC_V1_5.name

    def say(url: str) -> None:
        key = ' -H "Authorization: Bearer $KEY"' if settings.api_keys else ""
        curl = CURL.format(url=url, key=key)
        told = WELCOME.format(model=spec.name, url=url, curl=curl, other=other, process=os.getpid())
        click.echo(told, err=True)

    is_wanted = sys.stderr.isatty() if welcome is None else welcome
    run(settings, say if is_wanted else None)
