"""Search by words: no input is a mistake in FTS5's language, and every word is found."""

import sqlite3
import string
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plimsoll.corpora import documents, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.filters import parse_filter
from plimsoll.corpora.reclaim import reclaim
from plimsoll.corpora.records import Collection, Document, Space
from plimsoll.corpora.words import MOST_CHARACTERS, MOST_WORDS, match_of, search_words

ANY_TEXT = st.text(max_size=60) | st.text(string.punctuation + "aA0 \x00\n", max_size=60)


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """One that is in a transaction, for the length of the module."""
    database = Database(tmp_path_factory.mktemp("words") / "collections.sqlite3")
    with database.writing() as connection:
        yield connection
    database.close()


@pytest.fixture
def collection(connection: sqlite3.Connection) -> Iterator[Collection]:
    collection = versions.create(connection, "ships", Space("v1:a", 2, "small"))
    yield collection
    drop(connection, collection)


def drop(connection: sqlite3.Connection, collection: Collection) -> None:
    """Drop a collection with its tables, of which there would be thousands."""
    versions.drop(connection, collection)
    while reclaim(connection, 1000):
        pass


def put(connection: sqlite3.Connection, collection: Collection, *texts: str) -> list[int]:
    documents.put(connection, collection.id, [Document(text, text) for text in texts])
    return [documents.get(connection, collection.id, text).row for text in texts]


def found(connection: sqlite3.Connection, collection: Collection, query: str) -> list[int]:
    return search_words(connection, collection.id, query, 10).rows.tolist()


@settings(deadline=None)
@given(text=ANY_TEXT)
@example(text='"')
@example(text='a"b NEAR( * ^ OR AND NOT {x}: -')
@example(text="a\0b")
@example(text="हिन्दी में एक जहाज़")
@example(text="e\u0301tat Straße ＡＢＣ 船")
def test_any_text_is_a_query_and_finds_the_document_that_says_it(
    connection: sqlite3.Connection, text: str
):
    """Quotes, operators, NUL, other scripts: what FTS5 took for words is found by the same text."""
    collection = versions.create(connection, "any", Space("v1:a", 2, "small"))
    try:
        (row,) = put(connection, collection, text)
        table = f"fts_rows_{collection.id}"
        connection.execute(
            f"CREATE VIRTUAL TABLE {table} USING fts5vocab(words_{collection.id}, 'row')"
        )
        has_words = connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None
        connection.execute(f"DROP TABLE {table}")

        assert found(connection, collection, text) == ([row] if has_words else [])
    finally:
        drop(connection, collection)


@settings(deadline=None)
@given(query=ANY_TEXT)
def test_any_query_is_answered(connection: sqlite3.Connection, query: str):
    collection = versions.create(connection, "any", Space("v1:a", 2, "small"))
    try:
        put(connection, collection, "a ship", "AND OR NOT NEAR")
        search_words(connection, collection.id, query, 10)
    finally:
        drop(connection, collection)


def test_any_of_the_words_may_be_found_and_more_of_them_are_better(
    connection: sqlite3.Connection, collection: Collection
):
    """A word is also what stands between hyphens; case and accents do not count."""
    rows = put(connection, collection, "A deep-sea ship", "the sea", "tea", "a ship at SEA, état")

    assert found(connection, collection, "Deep SEA") == [rows[0], rows[1], rows[3]]
    assert found(connection, collection, "etat") == [rows[3]]
    assert found(connection, collection, "AND") == []


def test_equal_documents_stand_in_their_order(
    connection: sqlite3.Connection, collection: Collection
):
    rows = put(connection, collection, "one ship", "two ship", "ten ship", "none")

    ranked = search_words(connection, collection.id, "ship", 2)

    assert ranked.rows.tolist() == rows[:2]
    assert ranked.scores[0] == ranked.scores[1] > 0


def test_only_documents_that_fit_are_found(connection: sqlite3.Connection, collection: Collection):
    texts = [Document(str(year), "a ship", {"year": year}) for year in (1860, 1870, 1880)]
    rows = documents.put(connection, collection.id, texts)

    condition = parse_filter({"year": {"$gt": 1860}})
    ranked = search_words(connection, collection.id, "ship", 10, condition)

    assert ranked.rows.tolist() == rows[1:]


def test_a_query_of_thousands_of_words_is_searched_by_its_first(
    connection: sqlite3.Connection, collection: Collection
):
    """A whole document may be pasted into the field."""
    (row,) = put(connection, collection, "word7")
    query = " ".join(f"word{number}" for number in range(3 * MOST_WORDS))

    match = match_of(query)
    one_word = match_of("船" * 10 * MOST_CHARACTERS)

    assert match is not None
    assert match.count(" OR ") == MOST_WORDS - 1
    assert one_word == f'"{"船" * MOST_CHARACTERS}"'
    assert found(connection, collection, query) == [row]
