"""Rank documents that come with the request, by words alone.

rank_bm25's BM25Okapi with its defaults; nothing is stored between calls. Its inverse document
frequency was made for collections: a word in half of the documents or more says nothing or less,
so among two or three documents the scores may be 0 or negative.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from rank_bm25 import BM25Okapi

# About how much of a text is looked at together where its words are only counted.
PIECE_CHARACTERS = 1 << 16

_WORD = re.compile(r"[^\W_]+")  # letters and digits of every script


def count_words(texts: Iterable[str]) -> int:
    """How many words there are in all, hardly more than that; takes no memory for them."""
    return sum(
        1
        for text in texts
        for start in range(0, len(text), PIECE_CHARACTERS)
        for _ in _WORD.finditer(text[start : start + PIECE_CHARACTERS].lower())
    )


def rank_documents(query: str, documents: Sequence[str]) -> np.ndarray:
    """Score each document for the query; more is better.

    Returns float64 (documents,), all 0 where the query or every document is without words.
    One document's words are held at a time, and a count for each distinct word of each document.
    """
    scores = np.zeros(len(documents))
    wanted = Counter(_words(query))
    # BM25Okapi divides by the number of distinct words.
    if not wanted or not any(_words(document) for document in documents):
        return scores
    ranker = BM25Okapi(_words(document) for document in documents)
    for word, count in wanted.items():
        if word in ranker.idf:
            scores += count * ranker.get_scores([word])
    return scores


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
