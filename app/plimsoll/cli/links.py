"""`plimsoll links`: tables, points and files elsewhere that a server's collections mirror."""

from collections.abc import Mapping
from time import sleep
from typing import Any
from urllib.parse import quote

import click

from plimsoll.cli.help import Group
from plimsoll.cli.server_options import asks_server, client_of, show

LOOK_EVERY_S = 0.5

_NAME = click.argument("name")


@click.group(cls=Group)
def links() -> None:
    """Mirror a table, points or files elsewhere in a collection, and follow them.

    \b
      plimsoll links doctor ships
      plimsoll links pull ships
      plimsoll migrate run ships --model nomic-embed-text-v1.5
      plimsoll migrate cutover 1
      plimsoll links unlink ships

    Where links lead stands in the server's PLIMSOLL_LINKS file; here they are only named. A
    collection has the name of its link. Vectors of a migration go back to where the texts are, and
    its cut-over, rollback and purge are done there too.
    """


@links.command("list")
@asks_server
def list_links(**given: Any) -> None:
    """Show every link: what is mirrored, and what is still to be brought out."""
    show(client_of(given).request("GET", "/links")["links"], given, _print_links)


@links.command()
@_NAME
@asks_server
def doctor(name: str, **given: Any) -> None:
    """Look at what a link leads to, and change nothing; exit code 1 where it cannot be used."""
    survey = client_of(given).request("GET", f"{_path(name)}/doctor")
    show(survey, given, _print_survey)
    if any(found["blocks"] for found in survey["findings"]):
        click.get_current_context().exit(1)


@links.command()
@_NAME
@asks_server
def pull(name: str, **given: Any) -> None:
    """Read every row into a collection of the link's name, and follow the link from then on."""
    from plimsoll.cli.progress import progress_of

    client = client_of(given)
    link = client.request("POST", f"{_path(name)}/pull", {})
    with progress_of(name, "texts") as progress:
        while link["pulling"]:
            phase = "pull" if link["waits"] is None else f"wait: {link['waits']}"
            progress(link["rows"], None, phase)
            sleep(LOOK_EVERY_S)
            link = client.request("GET", _path(name))
        progress(link["rows"], link["rows"], "pull")
    show(link, given, _print_link)


@links.command()
@_NAME
@asks_server
def push(name: str, **given: Any) -> None:
    """Bring every vector out once more, such as after a backup was put back there."""
    show(client_of(given).request("POST", f"{_path(name)}/push", {}), given, _print_link)


@links.command()
@_NAME
@click.option(
    "--force",
    is_flag=True,
    help="Also where it does not answer, or is in no file of links any more; what is there then "
    "stays there.",
)
@asks_server
def unlink(name: str, force: bool, **given: Any) -> None:
    """Follow a link no more, and let its collection be one of its own."""
    left = client_of(given).request("POST", f"{_path(name)}/unlink", {"force": force})["links"]
    show(left, given, _print_links)


def _path(name: str) -> str:
    return f"/links/{quote(name, safe='')}"


def _print_link(link: Mapping[str, Any]) -> None:
    _print_links([link])


def _print_links(found: list[Mapping[str, Any]]) -> None:
    from plimsoll.cli.tables import print_table

    if not found:
        click.echo("there are no links: PLIMSOLL_LINKS names the file that says where they lead")
        return
    heads = ("link", "kind", "state", "documents", "to bring out")
    rows = [
        (
            each["name"],
            each["kind"],
            _state(each),
            str(each["documents"]),
            str(sum(space["vectors"] for space in each["waiting"])),
        )
        for each in found
    ]
    print_table(heads, rows, numbers=("documents", "to bring out"))
    for each in found:
        if each["waits"] is not None:
            click.echo(f"\n{each['name']} waits: {each['waits']}")


def _state(link: Mapping[str, Any]) -> str:
    if not link["pulled"]:
        return "not pulled"
    if link["pulling"]:
        return "pulling"
    return "following" if link["following"] else "at rest"


def _print_survey(survey: Mapping[str, Any]) -> None:
    from plimsoll.cli.tables import print_table

    active = survey["active"] or "not noted yet"
    print_table(
        ("what", "found"),
        [
            ("place", survey["where"]),
            ("rows", str(survey["rows"])),
            ("without text", str(survey["without_text"])),
            ("without vector", str(survey["without_vector"])),
            ("values of a vector", str(survey["dimensions"] or "unknown")),
            ("space", active),
            ("changes to take in", str(survey["changes"])),
        ],
    )
    for found in survey["findings"]:
        kind = click.style("blocks", "red") if found["blocks"] else click.style("note", "yellow")
        click.echo(f"{kind}: {found['message']}")
