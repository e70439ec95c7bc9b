"""A file of collections, and a space of small vectors."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.corpora.database import FILE_NAME, Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "data" / FILE_NAME)
    yield database
    database.close()
