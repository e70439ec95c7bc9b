"""Which running server a command asks, what it sends along, and how the answer is shown."""

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from plimsoll.errors import InvalidRequestError, ServerError
from plimsoll.settings import local_url
from plimsoll.settings_sources import load_settings

if TYPE_CHECKING:
    from plimsoll import Client
    from plimsoll.client.asking import OnWait

Command = TypeVar("Command", bound=Callable[..., None])


class ToldWaits:
    """Says why a command waits. Owns what was said: each reason once."""

    def __init__(self) -> None:
        """Nothing said yet."""
        self._said = set[str]()

    def __call__(self, error: ServerError, seconds: float) -> None:
        """Say it, unless it has been said."""
        if error.code not in self._said:
            self._said.add(error.code)
            click.echo(f"plimsoll: waiting: {error}", err=True)


def own_url() -> str:
    """Where a server with the settings that hold here is reached from this machine."""
    settings = load_settings().settings
    if not settings.port:
        raise click.UsageError("PLIMSOLL_PORT is 0, so the server takes any free port; give --url")
    return local_url(settings.host, settings.port)


def header_of(text: str) -> tuple[str, str]:
    """A header that was given as NAME:VALUE. Raises click.UsageError for one that is none."""
    from plimsoll.client.over_httpx import headers_of

    name, colon, value = text.partition(":")
    if not colon:
        raise click.UsageError("a header is NAME: VALUE")
    try:
        ((name, value),) = headers_of(None, {name.strip(): value.strip()}).items()
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from None
    return name, value


def asks_server(command: Command) -> Command:
    """Add the options that say which server, and how its answer is shown."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the server's answer."),
        click.option(
            "--header",
            "headers",
            multiple=True,
            metavar="NAME:VALUE",
            help="Sent along; a server with keys needs 'Authorization: Bearer KEY' of the role "
            "admin.",
        ),
        click.option(
            "--url",
            show_default="http://PLIMSOLL_HOST:PLIMSOLL_PORT",
            metavar="URL",
            help="The server.",
        ),
    ):
        command = option(command)
    return command


def show(answer: Any, given: dict[str, Any], print_answer: Callable[[Any], None]) -> None:
    """Print an answer as JSON where that was asked for, else as `print_answer` does."""
    if given["as_json"]:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        print_answer(answer)


def client_of(given: dict[str, Any], on_wait: "OnWait | None" = None) -> "Client":
    """A client that is closed with the command; a question may take as long as it has to.

    on_wait: asks again for as long as the server says when, and tells it; without, asks once.
    """
    from plimsoll import Client

    client = Client(
        given["url"] or own_url(),
        headers=dict(header_of(text) for text in given["headers"]),
        deadline_s=math.inf,
        max_retries=0 if on_wait is None else None,
        on_wait=on_wait,
    )
    click.get_current_context().call_on_close(client.close)
    return client
