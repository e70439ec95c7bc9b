"""What a row that is looked at changes here: its text and vector as before, other, or gone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from sqlite3 import Connection

import numpy as np
import pytest

from plimsoll.corpora import vectors, versions
from plimsoll.corpora.database import FILE_NAME, Database
from plimsoll.corpora.records import Collection, Space, VersionState
from plimsoll.links import state
from plimsoll.links.mirror import mirror
from plimsoll.links.records import OutsideRow

ROUNDING = 1e-3
V, W, OWN = np.eye(3, dtype=np.float32)
ROW = 1
BUILDING = VersionState.BUILDING


class Mirror:
    """A collection with one row outside. look: takes it in. has: the vector that is here now."""

    def __init__(self, connection: Connection, model: str | None) -> None:
        self.connection = connection
        self.collection: Collection = versions.create(connection, "ships", Space("s", 3, model))
        self.version = self.collection.active
        state.watch(connection, self.version.id, with_all=False)

    def look(self, text: str, vector: np.ndarray | None) -> None:
        row = OutsideRow("a", text, vector)
        mirror(self.connection, self.collection, self.version, [row], ["a"], ROUNDING)

    def has(self, vector: np.ndarray | None, *, waits: bool = False) -> bool:
        found = vectors.get(self.connection, self.version.id, [ROW]).get(ROW)
        is_waiting = bool(state.are_waiting(self.connection, self.version.id, [ROW]))
        return is_waiting is waits and (
            found is None if vector is None else np.array_equal(found, vector)
        )

    def pushed(self) -> None:
        state.take_out(self.connection, self.version.id, [ROW])

    def embedded(self, vector: np.ndarray) -> None:
        vectors.put(self.connection, self.version.id, [ROW], [vector])


def rounded(vector: np.ndarray, part: float = 0.5) -> np.ndarray:
    return vector + np.float32(part * ROUNDING)


@pytest.fixture
def mirrored(tmp_path: Path) -> Iterator[Callable[[str | None], Mirror]]:
    """Makes a mirror; of a foreign space without a model."""
    database = Database(tmp_path / FILE_NAME)
    with database.writing() as connection:
        yield lambda model: Mirror(connection, model)
    database.close()


@pytest.mark.parametrize("model", [None, "a-model"])
def test_a_vector_is_taken_kept_or_brought_out_whose_text_is_as_before(mirrored, model):
    """What is rounded is the same; what is gone outside is brought there again."""
    ships = mirrored(model)
    ships.look("A", V)
    assert ships.has(V)
    ships.look("A", rounded(V))
    assert ships.has(V)
    ships.look("A", W)
    assert ships.has(W)
    ships.look("A", None)
    assert ships.has(W, waits=True)
    ships.pushed()
    ships.look("A", rounded(W))
    assert ships.has(W)
    ships.look("B", V)
    assert ships.has(V)


def test_a_foreign_vector_of_an_earlier_text_stays_out_however_it_is_rounded(mirrored):
    """Until the row has another."""
    ships = mirrored(None)
    ships.look("A", V)
    ships.look("B", rounded(V))
    assert ships.has(None)
    for part in (0.5, 0.0, 0.9):
        ships.look("B", rounded(V, part))
        assert ships.has(None)
    ships.look("C", None)
    ships.look("C", V)
    assert ships.has(None)
    ships.look("C", W)
    assert ships.has(W)
    ships.look("C", rounded(W))
    assert ships.has(W)


def test_a_vector_that_is_made_here_is_not_taken_from_outside_before_it_is_there(mirrored):
    """What stands there is of an older text until then."""
    ships = mirrored("a-model")
    ships.look("A", V)
    for _ in range(2):
        ships.look("B", rounded(V))
        assert ships.has(None)
    ships.embedded(OWN)
    ships.look("B", rounded(V))
    assert ships.has(OWN, waits=True)
    ships.pushed()
    ships.look("B", rounded(OWN))
    assert ships.has(OWN)


def test_bridged_vectors_of_changed_texts_are_not_remembered(mirrored):
    """They never go out, so none of them can come back."""
    ships = mirrored(None)
    ships.look("A", V)
    bridge = versions.add(ships.connection, ships.collection.id, Space("bridge:n:1", 3), BUILDING)
    vectors.put(ships.connection, bridge.id, [ROW], [OWN])
    ships.look("B", V)
    assert state.stale_vectors(ships.connection, ships.version.id, [ROW]).keys() == {ROW}
    assert not state.stale_vectors(ships.connection, bridge.id, [ROW])
