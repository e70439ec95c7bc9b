"""Fixtures of the API's tests."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakeOpener, FakeServer


@pytest.fixture
def fake() -> Iterator[tuple[FakeServer, TestClient]]:
    server = FakeServer(FakeOpener())
    with TestClient(server.app) as client:
        try:
            yield server, client
        finally:
            server.close()  # before the event loop, which the engine's thread reports to
