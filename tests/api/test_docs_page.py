"""/docs as a browser fetches it. Seen in a real one: tests/acceptance/test_docs_page.py."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient

from plimsoll.api.pages import __file__ as pages_file
from tests.fakes import FakeOpener, FakeServer

FOLDER = Path(pages_file).parent / "docs"
OURS = ("docs.html", "docs.js")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    server = FakeServer(FakeOpener())
    with TestClient(server.app) as client:
        yield client
    server.close()


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_every_file_that_the_page_names_is_served(client: TestClient, path: str):
    """Without a network, and at either spelling of its address."""
    page = client.get(path)
    named = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    kinds = [client.get(urljoin(path, name)).headers["content-type"] for name in named]

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert len(named) == 4
    assert sorted(kinds) == ["text/css; charset=utf-8"] * 2 + ["text/javascript; charset=utf-8"] * 2


def test_the_page_lets_nothing_in_from_elsewhere(client: TestClient):
    """Swagger UI draws its icons from data in its style sheet; nothing else is let in."""
    policy = client.get("/docs").headers["content-security-policy"]

    assert "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:" in policy
    assert "unsafe" not in policy
    for name in OURS:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not re.search(r"(https?:)?//\w", text)
        assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=|javascript:", text)


def test_the_licences_of_what_others_wrote_stand_beside_it():
    """The bundle's own first line sends its reader to that file."""
    bundle = (FOLDER / "swagger-ui-bundle.js").read_text(encoding="utf-8")
    licences = re.findall(r"license information please see (\S+)", bundle)

    assert licences == ["swagger-ui-bundle.js.LICENSE.txt"]
    assert (FOLDER / licences[0]).is_file()


@pytest.mark.parametrize(
    "path", ["/redoc", "/docs/oauth2-redirect", "/docs/..%2Fstatus.html", "/docs/nothing.js"]
)
def test_there_is_no_other_page(client: TestClient, path: str):
    """FastAPI's own would load their scripts from elsewhere."""
    assert client.get(path).status_code == 404
