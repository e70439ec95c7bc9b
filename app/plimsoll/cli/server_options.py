"""Which running server a command asks, and what it sends along."""

import click

from plimsoll.settings import local_url
from plimsoll.settings_sources import load_settings


def own_url() -> str:
    """Where a server with the settings that hold here is reached from this machine."""
    settings = load_settings().settings
    if not settings.port:
        raise click.UsageError("PLIMSOLL_PORT is 0, so the server takes any free port; give --url")
    return local_url(settings.host, settings.port)


def header_of(text: str) -> tuple[str, str]:
    """A header that was given as NAME:VALUE."""
    name, colon, value = text.partition(":")
    if not colon:
        raise click.UsageError("a header is NAME: VALUE")
    return name.strip(), value.strip()
