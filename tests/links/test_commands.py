"""`plimsoll links` and the routes behind it, with a server in a process of its own."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import httpx
import psycopg
import pytest
from click.testing import Result

from tests.cli.conftest import Commands
from tests.cli.conftest import run as run  # the fixture
from tests.links.linked import FOREIGN, TOML, VARIABLE, columns, content, make_ships
from tests.migration.conftest import write_models
from tests.migration.models import NEW, settings_of
from tests.running_server import DEADLINE_S, RunningServer

ADMIN, EMBED = "an-admin-key-of-this-test", "an-embed-key-of-this-test"
N = 40

Plimsoll = Callable[..., Result]


@pytest.fixture
def server(tmp_path: Path, url: str, application: psycopg.Connection) -> Iterator[RunningServer]:
    """A server with keys whose operator has written a link down."""
    make_ships(application, N)
    write_models(tmp_path)
    settings = settings_of(tmp_path)
    file = tmp_path / "links.toml"
    file.write_text(TOML + FOREIGN)
    options = {
        "PLIMSOLL_LINKS": str(file),
        VARIABLE: url,
        "PLIMSOLL_MODEL": settings.model,
        "PLIMSOLL_EXTRA_MODELS": settings.extra_models or "",
        "PLIMSOLL_MAX_OPEN_MODELS": "3",
        "PLIMSOLL_CACHE_DIR": str(settings.cache_dir),
        "PLIMSOLL_CACHE_ON_TMPFS": "true",
        "PLIMSOLL_API_KEYS": f"admin:{ADMIN},embed:{EMBED}",
    }
    with RunningServer(tmp_path, **options) as running:
        yield running


@pytest.fixture
def plimsoll(run: Commands, server: RunningServer) -> Plimsoll:
    """Run a command that asks the server."""

    def call(*arguments: str, key: str = ADMIN) -> Result:
        header = f"Authorization: Bearer {key}"
        return run(*arguments, "--url", server.url, "--header", header)

    return call


def test_the_commands_take_a_table_all_the_way(
    plimsoll: Plimsoll, server: RunningServer, application: psycopg.Connection
):
    """As the page of migrations walks, with what a user sees at each step."""
    surveyed = plimsoll("links", "doctor", "ships")
    assert surveyed.exit_code == 0
    assert f"public.ships of {VARIABLE}" in surveyed.output
    assert "not pulled" in plimsoll("links", "list").output
    pulled = plimsoll("links", "pull", "ships")
    assert (pulled.exit_code, "following" in pulled.output) == (0, True)
    link = json.loads(plimsoll("links", "list", "--json").output)[0]
    assert (link["documents"], link["rows"], link["waits"]) == (N, N, None)

    # Forty documents are too few for a verdict.
    assert plimsoll("migrate", "run", "ships", "--model", NEW).exit_code == 1
    assert plimsoll("migrate", "cutover", "1").exit_code == 2
    assert "vector_next" in columns(application)
    assert plimsoll("migrate", "cutover", "1", "--force").exit_code == 0
    assert all(len(vector) > 8 for _, vector in content(application).values())
    status = plimsoll("migrate", "status", "1").output
    assert "vector_before" in status.replace("\n", "")
    assert plimsoll("migrate", "rollback", "1").exit_code == 0
    assert all(len(vector) == 8 for _, vector in content(application).values())
    assert plimsoll("migrate", "cutover", "1", "--force").exit_code == 0
    refused = plimsoll("links", "unlink", "ships")
    assert (refused.exit_code, "purge or cancel" in refused.output) == (2, True)
    assert plimsoll("migrate", "purge", "1").exit_code == 0
    deadline = monotonic() + DEADLINE_S
    while columns(application) != {"id", "text", "vector"}:
        assert monotonic() < deadline, "the old column stays"
        sleep(0.05)
    assert "not pulled" in plimsoll("links", "unlink", "ships").output


def test_links_are_the_operators(plimsoll: Plimsoll, server: RunningServer):
    """A client's key says nothing of tables, and nobody names one over HTTP."""
    assert plimsoll("links", "pull", "ships", key=EMBED).exit_code == 2
    assert "there is no link 'other'" in plimsoll("links", "doctor", "other").output
    with httpx.Client(base_url=server.url, headers={"X-API-Key": ADMIN}) as client:
        named = client.post("/links/ships/pull", json={"url": "postgresql://elsewhere/"})
        assert (named.status_code, named.json()["error"]["code"]) == (400, "invalid_request")
        early = client.post("/links/ships/push", json={})
        assert (early.status_code, early.json()["error"]["code"]) == (409, "link_state")


def test_a_table_that_cannot_be_used_is_told_with_exit_code_1(
    plimsoll: Plimsoll, application: psycopg.Connection
):
    """A script stops there, before it pulls."""
    application.execute("ALTER TABLE ships ALTER COLUMN vector SET NOT NULL")
    surveyed = plimsoll("links", "doctor", "ships")
    assert surveyed.exit_code == 1
    assert "DROP NOT NULL" in surveyed.output
    refused = plimsoll("links", "pull", "ships")
    assert (refused.exit_code, "DROP NOT NULL" in refused.output) == (2, True)
