"""Exact search over a mapped copy that is never behind what SQLite has."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.ranking import Ranked
from plimsoll.corpora.records import Collection, Document, Space
from plimsoll.corpora.vector_copies import MOST_COPIES, VectorCopies
from plimsoll.policy.costs import SEGMENT_ROWS

DIMENSIONS = 8
N = 2 * SEGMENT_ROWS + 100  # the last segment is not full


@pytest.fixture
def copies(database: Database) -> Iterator[VectorCopies]:
    copies = VectorCopies(database.path.parent)
    yield copies
    copies.close()


@pytest.fixture
def collection(database: Database) -> Collection:
    with database.writing() as connection:
        return versions.create(connection, "ships", Space("v1:a", DIMENSIONS, "small"))


def random(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIMENSIONS)).astype(np.float32)


def fill(database: Database, collection: Collection, values: np.ndarray) -> list[int]:
    with database.writing() as connection:
        texts = [Document(str(number), str(number)) for number in range(len(values))]
        rows = documents.put(connection, collection.id, texts)
        vectors.put(connection, collection.active.id, rows, values)
    return rows


def look(
    database: Database, copies: VectorCopies, collection: Collection, query: np.ndarray, **options
) -> Ranked:
    with database.reading() as connection:
        return copies.search(connection, collection.active, query, 10, **options)


def assert_exact(found: Ranked, rows: np.ndarray, values: np.ndarray, query: np.ndarray) -> None:
    """The ten nearest by float64 cosines over everything."""
    wide = values.astype(np.float64)
    cosines = wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines, kind="stable")[:10]
    assert found.rows.tolist() == rows[order].tolist()
    np.testing.assert_allclose(found.scores, cosines[order], atol=1e-6)


def test_a_search_is_exact_from_sqlite_and_from_the_copy(
    database: Database, copies: VectorCopies, collection: Collection
):
    """The first search makes the copy, the second one reads it; lengths do not count."""
    values, query = random(N), 7 * random(1, 1)[0]
    rows = np.array(fill(database, collection, values))

    first, second = (look(database, copies, collection, query) for _ in range(2))

    assert_exact(first, rows, values, query)
    assert_exact(second, rows, values, query)


def test_the_copy_follows_every_change(
    database: Database, copies: VectorCopies, collection: Collection
):
    """Changed, deleted and new rows, in a segment that was copied and in one that was not."""
    values, query = random(N), random(1, 1)[0]
    rows = np.array(fill(database, collection, values))
    look(database, copies, collection, query)

    values[5] = query
    with database.writing() as connection:
        vectors.put(connection, collection.active.id, [int(rows[5])], [query])
        documents.delete(connection, collection.id, ["7", str(N - 1)])
        new = documents.put(
            connection, collection.id, [Document(f"new {n}", "") for n in range(SEGMENT_ROWS)]
        )
        more = random(SEGMENT_ROWS, 2)
        vectors.put(connection, collection.active.id, new, more)
    kept = np.ones(N, bool)
    kept[[7, N - 1]] = False
    rows = np.concatenate((rows[kept], new))
    values = np.concatenate((values[kept], more))

    for _ in range(2):
        found = look(database, copies, collection, query)
        assert found.rows[0] == 6
        assert_exact(found, rows, values, query)


def test_a_change_that_was_rolled_back_is_not_seen(
    database: Database, copies: VectorCopies, collection: Collection
):
    values, query = random(N), random(1, 1)[0]
    rows = np.array(fill(database, collection, values))
    look(database, copies, collection, query)

    def fail() -> None:
        with database.writing() as connection:
            vectors.put(connection, collection.active.id, [1], [query])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert_exact(look(database, copies, collection, query), rows, values, query)


def test_a_search_among_some_rows_finds_the_best_of_them(
    database: Database, copies: VectorCopies, collection: Collection
):
    values, query = random(N), random(1, 1)[0]
    rows = np.array(fill(database, collection, values))
    among = rows[::7]

    def fitting(places: range) -> np.ndarray:
        return among[(among >= places.start) & (among < places.stop)]

    found = look(database, copies, collection, query, among=fitting)

    assert_exact(found, among, values[::7], query)
    empty = look(database, copies, collection, query, among=lambda _: np.empty(0, np.int64))
    assert empty.rows.tolist() == []


def test_a_vector_of_length_0_is_like_nothing(
    database: Database, copies: VectorCopies, collection: Collection
):
    """No NaN that would stand before all others."""
    values = np.zeros((2, DIMENSIONS), np.float32)
    values[1, 0] = 1
    rows = fill(database, collection, values)

    found = look(database, copies, collection, values[1])

    assert (found.rows.tolist(), found.scores.tolist()) == ([rows[1], rows[0]], [1, 0])


def test_an_empty_version_has_an_empty_answer(
    database: Database, copies: VectorCopies, collection: Collection
):
    assert look(database, copies, collection, random(1)[0]).rows.tolist() == []


def full(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_where_there_is_no_room_for_a_copy_sqlite_is_searched(
    database: Database,
    copies: VectorCopies,
    collection: Collection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Slower and as exact; the log says so."""
    values, query = random(N), random(1, 1)[0]
    rows = np.array(fill(database, collection, values))
    monkeypatch.setattr("plimsoll.corpora.vector_copies.os.pwrite", full)

    for _ in range(2):
        assert_exact(look(database, copies, collection, query), rows, values, query)
    assert "No space left" in caplog.text


def make_ready(database: Database, copies: VectorCopies, collection: Collection) -> int:
    """Have all copied that can be; returns in how many steps."""
    after: int | None = -1
    n_steps = 0
    while after is not None:
        with database.reading() as connection:
            after = copies.copy_next(connection, collection.active, after)
        n_steps += 1
    return n_steps


def test_a_copy_that_was_made_ready_reads_no_vector_of_sqlite(
    database: Database,
    copies: VectorCopies,
    collection: Collection,
    monkeypatch: pytest.MonkeyPatch,
):
    """A segment at a time, and only those that changed; the first search is as quick as any."""
    values, query = random(N), random(1, 1)[0]
    rows = np.array(fill(database, collection, values))
    assert make_ready(database, copies, collection) == 3 + 1
    values[5] = query
    with database.writing() as connection:
        vectors.put(connection, collection.active.id, [int(rows[5])], [query])
    assert make_ready(database, copies, collection) == 1 + 1

    monkeypatch.setattr("plimsoll.corpora.vectors.of_segment", None)
    assert_exact(look(database, copies, collection, query), rows, values, query)


def test_where_nothing_can_be_copied_making_ready_ends(
    database: Database,
    copies: VectorCopies,
    collection: Collection,
    monkeypatch: pytest.MonkeyPatch,
):
    """On a full disk at the first segment, and for a version that is gone."""
    fill(database, collection, random(N))
    with monkeypatch.context() as patch:
        patch.setattr("plimsoll.corpora.vector_copies._write", full)
        assert make_ready(database, copies, collection) == 1
    with database.writing() as connection:
        versions.drop(connection, collection)
    assert make_ready(database, copies, collection) == 1
    assert n_open(database.path.parent) == 0


def test_files_are_given_back_with_their_versions(
    database: Database, copies: VectorCopies, collection: Collection
):
    """Each takes a descriptor; a server with a thousand collections keeps a few."""
    query = random(1)[0]
    names = [f"ships-{number}" for number in range(MOST_COPIES + 3)]
    for name in names:
        with database.writing() as connection:
            made = versions.create(connection, name, collection.active.space)
        look(database, copies, made, query)
    n_kept = n_open(database.path.parent)
    with database.writing() as connection:
        for name in names:
            versions.drop(connection, versions.find(connection, name))
    look(database, copies, collection, query)

    assert n_kept == MOST_COPIES
    assert n_open(database.path.parent) == 1


def n_open(folder: Path) -> int:
    """Files without a name in a folder that this process has open."""
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(str(link).startswith(f"{folder}/") and " (deleted)" in str(link) for link in links)


def test_vectors_of_any_length_become_unit_vectors():
    """Of very long and very short ones float32 cannot hold the square of their length."""
    values = np.float32([[3, 4], [3e20, 4e20], [-3e-25, 4e-25], [0, 0]])
    expected = np.float32([[0.6, 0.8], [0.6, 0.8], [-0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(vectors.unit(values), expected, rtol=1e-6)
