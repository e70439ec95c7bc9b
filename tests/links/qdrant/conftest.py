"""A server that speaks Qdrant's API, new for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from tests.links.linked import with_models
from tests.links.qdrant.ships import KEY, KEY_VARIABLE, VARIABLE
from tests.qdrant_server import QdrantServer


@pytest.fixture
def qdrant() -> Iterator[QdrantServer]:
    """A server without collections, which asks for a key."""
    server = QdrantServer(KEY)
    yield server
    server.close()


@pytest.fixture
def application(qdrant: QdrantServer) -> Iterator[QdrantClient]:
    """A client of an application."""
    client = qdrant.client()
    yield client
    client.close()


@pytest.fixture
def folder(
    models: Path, tmp_path: Path, qdrant: QdrantServer, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with models, without collections; the link leads to that server."""
    monkeypatch.setenv(VARIABLE, qdrant.url)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return with_models(tmp_path, models)
