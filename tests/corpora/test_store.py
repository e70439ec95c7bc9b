"""The file of collections: what commits together, what goes together, what survives a kill."""

import gc
import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from plimsoll.corpora import documents, schema, vectors, versions
from plimsoll.corpora.database import FILE_NAME, KEPT_STATEMENTS, Database, back_up, faults_of
from plimsoll.corpora.records import Collection, Document, Space, Version, VersionState
from plimsoll.errors import StoreError, UnknownCollectionError
from plimsoll.policy.costs import SEGMENT_ROWS, found_documents_bytes

OLD = Space("v1:old", 2, "small")
NEW = Space("v1:new", 3, "large")


def make(database: Database, name: str = "ships", space: Space = OLD) -> Collection:
    with database.writing() as connection:
        return versions.create(connection, name, space)


def put(
    database: Database,
    collection: Collection,
    *texts: tuple[str, str],
    version: Version | None = None,
) -> list[int]:
    """Store documents with a vector of ones each, in the active version if not told otherwise."""
    with database.writing() as connection:
        rows = documents.put(connection, collection.id, [Document(*pair) for pair in texts])
        target = version or collection.active
        vectors.put(connection, target.id, rows, ones(len(rows), target.space.dimensions))
    return rows


def ones(n: int, dimensions: int = 2) -> np.ndarray:
    return np.ones((n, dimensions), np.float32)


def ids_found(database: Database, collection: Collection, word: str) -> list[int]:
    """Rows of documents that have a word, as FTS5 finds them."""
    table = schema.words_table(collection.id)
    with database.reading() as connection:
        query = f"SELECT rowid FROM {table} WHERE {table} MATCH ? ORDER BY rowid"
        return [row for (row,) in connection.execute(query, (f'"{word}"',))]


def n_vectors(database: Database, version: Version) -> int:
    with database.reading() as connection:
        table = schema.vectors_table(version.id)
        (n,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert vectors.count(connection, version.id) == n  # the sum that is kept, and the truth
    return n


# --- collections and versions ---------------------------------------------------------------


def test_a_collection_points_to_its_first_version(database: Database):
    made = make(database)

    with database.reading() as connection:
        found = versions.find(connection, "ships")
        assert versions.all_collections(connection) == [found]
        assert versions.taking_writes(connection, found) == [found.active]
    assert found == made
    assert (found.active.space, found.active.state) == (OLD, VersionState.COMPLETE)


def test_an_unknown_collection_is_told_by_name(database: Database):
    with database.reading() as connection, pytest.raises(UnknownCollectionError, match="ships"):
        versions.find(connection, "ships")


def test_the_pointer_moves_to_a_complete_version_and_back(database: Database):
    """Cut-over and rollback are one statement each; what is half built is never pointed to."""
    collection = make(database)
    with database.writing() as connection:
        target = versions.add(connection, collection.id, NEW, VersionState.BUILDING)
        with pytest.raises(ValueError, match="no complete one"):
            versions.activate(connection, collection, target)
        versions.set_state(connection, target, VersionState.COMPLETE)
        versions.activate(connection, collection, target)

    with database.writing() as connection:
        moved = versions.find(connection, "ships")
        versions.activate(connection, moved, collection.active)
        back = versions.find(connection, "ships")
    assert (moved.active.id, back) == (target.id, collection)


def test_the_pointer_never_moves_to_another_collections_version(database: Database):
    ships, sheep = make(database), make(database, "sheep")

    with database.writing() as connection, pytest.raises(ValueError, match="no complete one"):
        versions.activate(connection, ships, sheep.active)


def test_writes_go_to_the_versions_that_take_them(database: Database):
    """The active one and a migration's target; after the purge one alone."""
    collection = make(database)
    with database.writing() as connection:
        target = versions.add(connection, collection.id, NEW, VersionState.BUILDING)
        both = versions.taking_writes(connection, collection)
        versions.set_takes_writes(connection, target, takes_writes=False)
        one = versions.taking_writes(connection, collection)

    assert [version.id for version in both] == [collection.active.id, target.id]
    assert one == [collection.active]


def test_the_active_version_is_not_dropped(database: Database):
    collection = make(database)
    put(database, collection, ("a", "a ship"))
    with database.writing() as connection:
        target = versions.add(connection, collection.id, NEW, VersionState.BUILDING)
        with pytest.raises(ValueError, match="active"):
            versions.drop_version(connection, collection.active)
        versions.drop_version(connection, target)

    with database.reading() as connection:
        assert versions.of_collection(connection, collection.id) == [collection.active]
    assert n_vectors(database, collection.active) == 1
    assert faults_of(database.path) == []


def test_a_collection_goes_with_all_that_is_in_it(database: Database):
    """And with nothing that is another's; a new one of its name begins empty."""
    ships, sheep = make(database), make(database, "sheep")
    put(database, ships, ("a", "a ship"))
    put(database, sheep, ("a", "a sheep"))
    with database.writing() as connection:
        versions.drop(connection, ships)

    again = make(database)

    with database.reading() as connection:
        assert documents.count(connection, again.id) == 0
        assert documents.count(connection, sheep.id) == 1
        assert vectors.count(connection, again.active.id) == 0
    assert faults_of(database.path) == []


# --- documents ------------------------------------------------------------------------------


def test_documents_are_listed_in_the_order_in_which_they_came(database: Database):
    """A row that changes keeps its place, one that goes leaves it empty for good."""
    collection = make(database)
    put(database, collection, *((name, name) for name in "abcd"))
    put(database, collection, ("a", "another"))
    with database.writing() as connection:
        assert documents.delete(connection, collection.id, ["d", "none"]) == 1
    put(database, collection, ("e", "e"), ("d", "d"))

    seen, row = list[str](), 0
    with database.reading() as connection:
        while part := documents.after(connection, collection.id, row, 2):
            seen += [document.id for document in part]
            row = part[-1].row
        assert documents.count(connection, collection.id) == 5
    assert seen == ["a", "b", "c", "e", "d"]
    assert row == 6


def test_a_document_is_found_by_its_id_with_what_belongs_to_it(database: Database):
    collection = make(database)
    told = Document("ä", "a ship\0 \u2028", {"year": 1876, "tags": ["ß", None]})
    with database.writing() as connection:
        documents.put(connection, collection.id, [told])
        found = documents.get(connection, collection.id, "ä")
        assert documents.get(connection, collection.id, "a") is None

    assert found is not None
    assert (found.id, found.text) == (told.id, told.text)
    assert json.loads(found.metadata_json) == told.metadata
    assert found.text_sha256 == hashlib.sha256(told.text.encode()).digest()


def test_found_documents_take_what_is_reckoned(database: Database):
    """Metadata of many small objects grow the most when parsed, and are never asked for whole."""
    collection = make(database)
    with database.writing() as connection:
        odd = Document("a", "a ship", {"x": [{}] * 200_000})
        rows = documents.put(connection, collection.id, [odd])
        n_bytes = documents.n_bytes(connection, collection.id, rows)
        tracemalloc.start()
        documents.of_rows(connection, collection.id, rows)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert n_bytes > 400_000
    assert peak <= found_documents_bytes(1, n_bytes) / 2  # a reply takes as much again


def test_another_text_takes_its_vectors_of_every_version_along(database: Database):
    """A vector must never stand beside a text that it is not of."""
    collection = make(database)
    with database.writing() as connection:
        target = versions.add(connection, collection.id, NEW, VersionState.BUILDING)
    put(database, collection, ("a", "a ship"), ("b", "a sheep"))
    put(database, collection, ("a", "a ship"), ("b", "a sheep"), version=target)

    with database.writing() as connection:
        documents.put(connection, collection.id, [Document("a", "a boat")])

    assert n_vectors(database, collection.active) == n_vectors(database, target) == 1


def test_other_metadata_alone_leaves_vectors_and_words(database: Database):
    collection = make(database)
    (row,) = put(database, collection, ("a", "a ship"))
    with database.writing() as connection:
        documents.put(connection, collection.id, [Document("a", "a ship", {"year": 1876})])

    assert n_vectors(database, collection.active) == 1
    assert ids_found(database, collection, "ship") == [row]


def test_words_are_found_as_long_as_their_document_says_them(database: Database):
    collection = make(database)
    rows = put(database, collection, ("a", "a ship"), ("b", "another ship"))
    put(database, collection, ("a", "a boat"))
    boat, ship = (ids_found(database, collection, word) for word in ("boat", "ship"))
    with database.writing() as connection:
        documents.delete(connection, collection.id, ["b"])

    assert (boat, ship) == (rows[:1], rows[1:])
    assert ids_found(database, collection, "ship") == []


def test_deleting_takes_vectors_of_every_version_along(database: Database):
    collection = make(database)
    with database.writing() as connection:
        target = versions.add(connection, collection.id, NEW, VersionState.BUILDING)
    for version in (collection.active, target):
        put(database, collection, ("a", "a ship"), ("b", "a sheep"), version=version)

    with database.writing() as connection:
        documents.delete(connection, collection.id, ["a"])

    assert n_vectors(database, collection.active) == n_vectors(database, target) == 1


# --- vectors --------------------------------------------------------------------------------


def test_vectors_come_back_bit_for_bit(database: Database):
    collection = make(database)
    rows = put(database, collection, ("a", "a"), ("b", "b"), ("c", "c"))
    values = np.float32([[1.5, -0.0], [np.pi, 1e-40]])
    with database.writing() as connection:
        vectors.put(connection, collection.active.id, rows[1:], values)
        found = vectors.get(connection, collection.active.id, [*rows, 99])
        places, matrix = vectors.of_segment(connection, collection.active.id, 0, 2)
        having = vectors.having(connection, collection.active.id, [0, *rows, 99])

    assert list(found) == places.tolist() == sorted(having) == rows
    assert matrix[1:].tobytes() == values.tobytes()
    assert found[rows[2]].tobytes() == values[1].tobytes()


def test_every_change_in_a_segment_is_counted(database: Database):
    """A copy of a segment is known to be behind by this number alone."""
    collection = make(database)
    version = collection.active

    def state() -> list[tuple[int, int, int]]:
        with database.reading() as connection:
            found = vectors.segments(connection, version.id)
            return [(part.number, part.n_changes, part.n_vectors) for part in found]

    put(database, collection, ("a", "a"), ("b", "b"))
    after_put = state()
    put(database, collection, ("a", "another"))
    after_change = state()
    with database.writing() as connection:
        documents.delete(connection, collection.id, ["b"])
    after_delete = state()
    with database.writing() as connection:
        vectors.put(connection, version.id, [SEGMENT_ROWS], ones(1))

    assert [after_put, after_change, after_delete] == [[(0, 1, 2)], [(0, 3, 2)], [(0, 4, 1)]]
    assert state() == [(0, 4, 1), (1, 1, 1)]
    assert vectors.Segment(1, 1, 1).first_row == SEGMENT_ROWS


# --- transactions and the file --------------------------------------------------------------


def test_what_raises_in_a_transaction_never_happened(database: Database):
    """Documents, vectors and another part's checkpoint commit together or not at all."""
    collection = make(database)

    def put_and_fail() -> None:
        with database.writing() as connection:
            rows = documents.put(connection, collection.id, [Document("a", "a ship")])
            vectors.put(connection, collection.active.id, rows, ones(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        put_and_fail()

    assert n_vectors(database, collection.active) == 0
    assert ids_found(database, collection, "ship") == []
    put(database, collection, ("a", "a ship"))
    assert n_vectors(database, collection.active) == 1


def test_a_reader_sees_the_file_as_it_was_when_it_began(database: Database):
    """It neither waits for the writer nor sees a half of its work."""
    collection = make(database)
    put(database, collection, ("a", "a ship"))
    with database.reading() as reader:
        assert documents.count(reader, collection.id) == 1
        with database.writing() as writer:
            documents.put(writer, collection.id, [Document("b", "b")])
            assert documents.count(reader, collection.id) == 1
        assert documents.count(reader, collection.id) == 1
    with database.reading() as reader:
        assert documents.count(reader, collection.id) == 2


def test_a_reader_keeps_few_of_the_values_that_it_was_given(database: Database):
    """Each filter is a statement of its own, and keeps what the client sent until it is dropped."""
    make(database)

    def n_statements() -> int:
        return sum(type(thing).__name__ == "Statement" for thing in gc.get_objects())

    before = n_statements()
    with database.reading() as connection:
        for n in range(1, 100):
            connection.execute(f"SELECT {', '.join('?' * n)}", ["a" * 1000] * n).fetchall()

    assert n_statements() - before <= KEPT_STATEMENTS


def test_what_was_written_is_there_for_the_next_process(database: Database):
    collection = make(database)
    put(database, collection, ("a", "a ship"))
    database.close()

    again = Database(database.path)
    assert n_vectors(again, collection.active) == 1
    assert faults_of(again.path) == []
    again.close()


def between_steps(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Have a copy made page by page, and `work` done after each of the first ten."""

    class Connection(sqlite3.Connection):
        def backup(self, target: sqlite3.Connection, *, pages: int) -> None:
            left = [work] * 10
            super().backup(target, pages=1, progress=lambda *_: left and left.pop()())

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Connection))


def test_a_copy_is_of_the_moment_at_which_it_began(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Writers go on meanwhile; a copy that began anew at each commit would not end."""
    collection = make(database)
    put(database, collection, ("a", "a ship"))
    more = iter(range(10))
    with monkeypatch.context() as patched:
        between_steps(patched, lambda: put(database, collection, (str(next(more)), "b")))
        back_up(database.path, tmp_path / "copy.sqlite3")

    copy = Database(tmp_path / "copy.sqlite3")
    assert (faults_of(copy.path), n_vectors(copy, collection.active)) == ([], 1)
    assert n_vectors(database, collection.active) == 11
    assert copy.path.stat().st_mode & 0o777 == 0o600
    copy.close()


def test_a_copy_that_fails_leaves_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Half of one might be taken for whole."""
    make(database)
    (tmp_path / "copies").mkdir()

    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    between_steps(monkeypatch, fail)
    with pytest.raises(StoreError, match="I/O"):
        back_up(database.path, tmp_path / "copies" / "copy.sqlite3")

    assert [*(tmp_path / "copies").iterdir()] == []


def test_a_copy_into_a_folder_that_is_not_there_is_refused(database: Database, tmp_path: Path):
    make(database)

    with pytest.raises(StoreError, match="none/copy"):
        back_up(database.path, tmp_path / "none" / "copy.sqlite3")


def test_damage_is_found(database: Database):
    """The head of a table's first page that something else wrote into."""
    collection = make(database)
    put(database, collection, ("a", "a ship"))
    with database.reading() as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = ?",
            (schema.vectors_table(collection.active.id),),
        ).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    database.close()
    with database.path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * 16)

    assert faults_of(database.path) != []


def test_a_file_that_is_none_is_said_to_be_damaged(tmp_path: Path):
    path = tmp_path / FILE_NAME
    path.write_bytes(b"no database" * 1000)

    with pytest.raises(StoreError, match="damaged"), Database(path).reading():
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()

    with (
        pytest.raises(StoreError, match="PLIMSOLL_DATA_DIR"),
        Database(tmp_path / "file" / FILE_NAME).reading(),
    ):
        pass


def test_a_full_disk_refuses_and_leaves_the_file_as_it_was(database: Database):
    """The next write, when there is room, goes on from there."""
    collection = make(database)
    put(database, collection, ("a", "a ship"))
    with database.writing() as connection:
        (n_pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {n_pages + 2}")

    with pytest.raises(StoreError, match="full"):
        put(database, collection, *((str(n), "a ship " * 2000) for n in range(100)))

    assert n_vectors(database, collection.active) == 1
    with database.writing() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    put(database, collection, ("b", "b"))
    assert faults_of(database.path) == []


# --- the schema's steps ---------------------------------------------------------------------


def test_a_file_takes_the_steps_that_it_lacks(database: Database, monkeypatch: pytest.MonkeyPatch):
    """Documents stay; a step that was taken is not taken again."""
    collection = make(database)
    put(database, collection, ("a", "a ship"))
    database.close()
    steps = (*schema.STEPS, ("CREATE TABLE further (id INTEGER)",))
    monkeypatch.setattr(schema, "STEPS", steps)

    for _ in range(2):
        again = Database(database.path)
        with again.writing() as connection:
            connection.execute("INSERT INTO further VALUES (1)")
        again.close()

    with closing(sqlite3.connect(database.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(steps),)
        assert connection.execute("SELECT count(*) FROM further").fetchone() == (2,)
    assert n_vectors(database, collection.active) == 1


def test_judged_queries_of_an_older_file_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They stood in the migration's own row."""
    path = tmp_path / "older.sqlite3"
    with monkeypatch.context() as patched:
        patched.setattr(schema, "STEPS", schema.STEPS[:2])
        older = Database(path)
        with older.writing() as connection:
            connection.execute(
                """INSERT INTO migrations (collection, name, source_version, source_fingerprint,
                    source_dimensions, target_version, target_fingerprint, target_dimensions,
                    state, judged)
                VALUES (1, 'ships', 1, 'a', 8, 2, 'b', 8, 'ready', '[{"query": "ship"}]')"""
            )
        older.close()

    database = Database(path)
    with database.reading() as connection:
        found = connection.execute(
            "SELECT migration, n_queries, queries FROM judged_queries"
        ).fetchall()
    database.close()
    assert found == [(1, 1, '[{"query": "ship"}]')]


def test_a_step_that_fails_leaves_the_file_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    make(database)
    database.close()
    bad = ("CREATE TABLE further (id INTEGER)", "CREATE TABLE collections (id INTEGER)")
    with monkeypatch.context() as patched:
        patched.setattr(schema, "STEPS", (*schema.STEPS, bad))
        with pytest.raises(StoreError), Database(database.path).reading():
            pass

    with closing(sqlite3.connect(database.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.STEPS),)
        tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    assert ("further",) not in tables


def test_a_file_of_a_later_version_is_left_alone(database: Database):
    make(database)
    database.close()
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(StoreError, match="later version"), Database(database.path).reading():
        pass


# --- kill -9 --------------------------------------------------------------------------------

BATCH = 8
WRITER = f"""
import sys
import numpy as np
from pathlib import Path
from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.records import Document, Space

database = Database(Path(sys.argv[1]))
with database.writing() as connection:
    collection = versions.create(connection, "ships", Space("v1:old", 2, "small"))
for batch in range(1_000_000):
    texts = [Document(str(batch * {BATCH} + n), f"ship {{batch}}") for n in range({BATCH})]
    with database.writing() as connection:
        rows = documents.put(connection, collection.id, texts)
        vectors.put(connection, collection.active.id, rows, np.ones(({BATCH}, 2), np.float32))
    print(batch, flush=True)
"""


@pytest.mark.parametrize("n_batches", [1, 7, 30])
def test_a_kill_leaves_whole_batches_and_all_that_were_confirmed(tmp_path: Path, n_batches: int):
    path = tmp_path / FILE_NAME
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        confirmed = [writer.stdout.readline() for _ in range(n_batches)]
        writer.send_signal(signal.SIGKILL)
    assert confirmed[-1] == b"%d\n" % (n_batches - 1)

    database = Database(path)
    assert faults_of(database.path) == []
    with database.reading() as connection:
        collection = versions.find(connection, "ships")
        stored = documents.after(connection, collection.id, 0, 1_000_000)
        rows: Sequence[int] = [document.row for document in stored]
        assert vectors.having(connection, collection.active.id, rows) == set(rows)
    assert len(stored) % BATCH == 0
    assert len(stored) >= n_batches * BATCH
    assert ids_found(database, collection, "ship") == rows
    assert n_vectors(database, collection.active) == len(rows)
    database.close()
