"""Search by words: a query as FTS5 takes it, and documents by BM25.

FTS5 has a language of its own. A query is not written in it: each of its words is quoted, and any
of them may be found. Source: https://sqlite.org/fts5.html, sections 3 and 5.1.1.
"""

import re
import sqlite3

import numpy as np

from plimsoll.corpora.filters import Condition
from plimsoll.corpora.ranking import Ranked
from plimsoll.corpora.schema import documents_table, words_table

# Within ASCII unicode61 takes letters and digits for words. What lies beyond is left to it.
_WORD = re.compile(r"[^\x00-\x2f\x3a-\x40\x5b-\x60\x7b-\x7f\s]+")
# Each looks for its documents; of a query that is a document the later ones say little more.
MOST_WORDS = 64
# Of a query that is read for them: beyond ASCII one of them may be as long as the query.
MOST_CHARACTERS = 4096


def match_of(query: str) -> str | None:
    """The query's first MOST_WORDS different words for FTS5's MATCH; None where it has none."""
    words = dict.fromkeys(_WORD.findall(query[:MOST_CHARACTERS].lower()))
    return " OR ".join(f'"{word}"' for word in list(words)[:MOST_WORDS]) or None


def search_words(
    connection: sqlite3.Connection,
    collection: int,
    query: str,
    most: int,
    condition: Condition | None = None,
) -> Ranked:
    """Up to `most` documents that have a word of the query, best first; more is better."""
    match = match_of(query)
    if match is None:
        return Ranked.none()
    words, documents = words_table(collection), documents_table(collection)
    fitting = ""
    if condition is not None:
        fitting = f"AND rowid IN (SELECT row FROM {documents} WHERE {condition.sql})"
    found = connection.execute(
        f"""SELECT rowid, -bm25({words}) AS score FROM {words} WHERE {words} MATCH ? {fitting}
        ORDER BY score DESC, rowid LIMIT ?""",
        (match, *(condition.values if condition else ()), most),
    ).fetchall()
    rows, scores = zip(*found, strict=True) if found else ((), ())
    return Ranked(np.array(rows, np.int64), np.array(scores, np.float64))
