"""BM25 as sparse vectors that fit into an index of fastembed's `Qdrant/bm25`.

A document's vector holds the term-frequency half of BM25, a query's the value 1.0 for each word;
inverse document frequency is the index's side. No index, no ranking, no files.
Source: fastembed 0.9.1, fastembed/sparse/bm25.py and its helpers; tests compare with it.

Tokens are what fastembed makes of a text: what is neither a letter, a digit nor "_" becomes a
blank, the rest is lower-cased and split at blanks. Two letters need care when that is done piece
by piece. "İ" alone lower-cases to two characters, of which the second, a combining dot, splits
the word there; and "Σ" lower-cases by its neighbours within the word.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mmh3
import numpy as np
from py_rust_stemmers import SnowballStemmer

from plimsoll.errors import TooLargeError
from plimsoll.retrieval.stop_words import ENGLISH_STOP_WORDS

K = 1.2
B = 0.75
AVERAGE_LENGTH = 256.0
MAX_TOKEN_CHARACTERS = 40
LANGUAGE = "english"
FINGERPRINT_VERSION = "bm25-v1"
# About how much of a text is counted at once: at most half as many words are held beside the stems.
PIECE_CHARACTERS = 1 << 14

# fastembed drops a token that is a punctuation mark; "_" is the only one that can be a token.
_DROPPED = ENGLISH_STOP_WORDS | {"_"}
# Revisions of the stemmer are told apart by what they make of these.
_STEM_PROBES = ("generously", "paste", "evening", "dying", "skies", "news", "geologist", "happily")
_DOTTED_I = "İ"
_SEPARATOR = re.compile(r"\W")
_RUN = re.compile(r"\w+")
_UP_TO_DOTTED_I = re.compile(f"[^{_DOTTED_I}]*{_DOTTED_I}|[^{_DOTTED_I}]+")


@dataclass(frozen=True, eq=False)
class SparseVector:
    """One text's words by number."""

    indices: np.ndarray  # uint32 (words,), ascending, each once
    values: np.ndarray  # float32 (words,)


class BM25Encoder:
    """Turns texts into sparse vectors; owns a stemmer, which several threads may use.

    Memory is constant but for the vocabulary: a text is read in pieces, and what is held of it is
    a count for each distinct stem, up to about 200 bytes each. `most_stems` bounds that.
    """

    def __init__(self, *, most_stems: int | None = None) -> None:
        self._most_stems = most_stems
        self._stemmer = SnowballStemmer(LANGUAGE)

    @property
    def fingerprint(self) -> str:
        """Name of the sparse space: equal exactly where vectors may be compared.

        A hash of the parameters, the stop words, and what the installed stemmer does.
        """
        named = {
            "k": K,
            "b": B,
            "average_length": AVERAGE_LENGTH,
            "max_token_characters": MAX_TOKEN_CHARACTERS,
            "stop_words": sorted(ENGLISH_STOP_WORDS),
            "stemmer": LANGUAGE,
            "stems": [self._stemmer.stem_word(word) for word in _STEM_PROBES],
        }
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]
        return f"{FINGERPRINT_VERSION}:{digest}"

    def encode_documents(self, texts: Sequence[str]) -> list[SparseVector]:
        """One vector a text, empty where a text has no word that counts.

        Raises TooLargeError for a text of more different words than `most_stems`.
        """
        return [_document_vector(self._count_stems(text)) for text in texts]

    def encode_queries(self, texts: Sequence[str]) -> list[SparseVector]:
        """One vector a text, all values 1.0, empty where a text has no word that counts.

        Raises as encode_documents does.
        """
        return [_query_vector(self._count_stems(text)) for text in texts]

    def _count_stems(self, text: str) -> dict[str, int]:
        """How often each stem is in the text, in the order of their first place."""
        counts: dict[str, int] = {}
        for start, end in _pieces(text):
            for word, count in Counter(_words(text, start, end)).items():
                token = word.lower()
                if token in _DROPPED:
                    continue
                stem = self._stemmer.stem_word(token)
                if stem:
                    counts[stem] = counts.get(stem, 0) + count
            if self._most_stems is not None and len(counts) > self._most_stems:
                raise TooLargeError(
                    f"a text has more than {self._most_stems} different words; cut it into parts"
                )
        return counts


def _document_vector(counts: Mapping[str, int]) -> SparseVector:
    frequencies = np.fromiter(counts.values(), np.float64, len(counts))
    length_ratio = frequencies.sum() / AVERAGE_LENGTH
    weights = frequencies * (K + 1) / (frequencies + K * (1 - B + B * length_ratio))
    return _vector(counts, weights)


def _query_vector(counts: Mapping[str, int]) -> SparseVector:
    return _vector(counts, np.ones(len(counts)))


def _vector(stems: Mapping[str, int], weights: np.ndarray) -> SparseVector:
    """Number the stems; of two with the same number, the last keeps its weight."""
    numbers = np.fromiter((abs(mmh3.hash(stem)) for stem in stems), np.uint32, len(stems))
    indices, places = np.unique(numbers[::-1], return_index=True)
    return SparseVector(indices, weights[::-1][places].astype(np.float32))


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Where to cut a text, always between words: a piece may be as long as its last word."""
    start = 0
    while start < len(text):
        cut = _SEPARATOR.search(text, start + PIECE_CHARACTERS)
        end = cut.start() if cut else len(text)
        yield start, end
        start = end


def _words(text: str, start: int, end: int) -> Iterator[str]:
    """Words that lower-case to one token each, without those that are too long for one.

    A long word is passed over without a copy of it.
    """
    runs = (run.span() for run in _RUN.finditer(text, start, end))
    if text.find(_DOTTED_I, start, end) >= 0:
        yield from _split_at_dotted_i(text, runs)
        return
    for run_start, run_end in runs:
        if run_end - run_start <= MAX_TOKEN_CHARACTERS:
            yield text[run_start:run_end]


def _split_at_dotted_i(text: str, runs: Iterable[tuple[int, int]]) -> Iterator[str]:
    """Tokens, lower-cased, of runs that may hold an "İ".

    Each is lower-cased together with the "İ" before it, which decides how a "Σ" comes out.
    """
    for start, end in runs:
        for part in _UP_TO_DOTTED_I.finditer(text, start, end):
            if part.end() - part.start() <= MAX_TOKEN_CHARACTERS:
                before = max(start, part.start() - 1)
                yield _RUN.findall(text[before : part.end()].lower())[-1]
