"""BM25 sparse vectors and ranking, against the recipe written out over a whole text at once.

fastembed itself, whose recipe it is, is compared in tests/retrieval/test_bm25_oracle.py.
"""

import math
import re
import sys
import tracemalloc
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product

import mmh3
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from py_rust_stemmers import SnowballStemmer

from plimsoll.errors import TooLargeError
from plimsoll.policy.costs import ranking_demand
from plimsoll.retrieval import bm25
from plimsoll.retrieval.bm25 import BM25Encoder, SparseVector
from plimsoll.retrieval.ranking import _WORD, count_words, rank_documents
from plimsoll.retrieval.stop_words import ENGLISH_STOP_WORDS

MIB = 1 << 20
STEMMER = SnowballStemmer("english")


@pytest.fixture(scope="module")
def encoder() -> BM25Encoder:
    return BM25Encoder()


@contextmanager
def small_pieces() -> Iterator[None]:
    """Cut after almost every word."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25, "PIECE_CHARACTERS", 3)
        yield


def as_map(vector: SparseVector) -> dict[int, float]:
    assert (vector.indices.dtype, vector.values.dtype) == (np.uint32, np.float32)
    assert np.all(np.diff(vector.indices.astype(np.int64)) > 0)
    return dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))


def document_of(encoder: BM25Encoder, text: str) -> dict[int, float]:
    return as_map(encoder.encode_documents([text])[0])


def number(stem: str) -> int:
    return abs(mmh3.hash(stem))


def recipe_stems(text: str) -> list[str]:
    """The published steps, in their order, on the whole text."""
    lowered = re.sub(r"[^\w\s]", " ", text).lower()
    tokens = re.sub(r"[^\w]", " ", lowered).split()
    kept = [t for t in tokens if t != "_" and t not in ENGLISH_STOP_WORDS and len(t) <= 40]
    return [stem for stem in map(STEMMER.stem_word, kept) if stem]


def recipe_document(text: str) -> dict[int, float]:
    stems = recipe_stems(text)
    return {
        number(stem): n * 2.2 / (n + 1.2 * (0.25 + 0.75 * len(stems) / 256))
        for stem, n in Counter(stems).items()
    }


# --- what a vector holds --------------------------------------------------------------------


def test_words_are_numbered_as_in_every_other_index_of_this_kind(encoder: BM25Encoder):
    """A literal from mmh3's README: the number may not depend on machine or version."""
    assert document_of(encoder, "foo").keys() == {156908512}


def test_a_document_holds_the_term_frequency_half_of_bm25(encoder: BM25Encoder):
    """Three words count: stop words make a document no longer."""
    found = document_of(encoder, "The ships shipped, and the sea")

    length = 1.2 * (0.25 + 0.75 * 3 / 256)
    assert found == pytest.approx(
        {number("ship"): 2 * 2.2 / (2 + length), number("sea"): 2.2 / (1 + length)}, abs=1e-6
    )


def test_a_query_holds_each_word_once_with_the_value_one(encoder: BM25Encoder):
    """How rare a word is, is the index's to say."""
    (vector,) = encoder.encode_queries(["ships, SHIPS and a sea"])

    assert as_map(vector) == {number("ship"): 1.0, number("sea"): 1.0}


@pytest.mark.parametrize("text", ["", " \n", "the", "...!", "_", "x" * 41, "\u0301", "\ud800"])
def test_a_text_without_a_word_that_counts_has_an_empty_vector(encoder: BM25Encoder, text: str):
    """It is no error: its neighbours in the request have vectors."""
    for vector in encoder.encode_documents([text]) + encoder.encode_queries([text]):
        assert as_map(vector) == {}


def test_each_text_of_a_list_has_its_own_vector(encoder: BM25Encoder):
    """In their order."""
    together = encoder.encode_documents(["ship", "", "sea"])

    assert [set(as_map(vector)) for vector in together] == [
        {number("ship")},
        set(),
        {number("sea")},
    ]


@pytest.mark.parametrize(("first", "last"), [("append", "ehop"), ("izmn", "autostart")])
def test_of_two_words_with_one_number_the_last_wins(encoder: BM25Encoder, first: str, last: str):
    """As in fastembed. The first pair's hashes differ in sign, the second's not at all."""
    assert number(first) == number(STEMMER.stem_word(last))

    found = document_of(encoder, f"{first} {last} {last} {first} {first}")

    expected = 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 5 / 256))  # of the last alone, twice in five
    assert found == pytest.approx({number(first): expected})


def test_words_of_forty_characters_count_and_longer_ones_do_not(encoder: BM25Encoder):
    """Before stemming: the longer one would be short enough after it."""
    fits, too_long = "9" * 40, "9" * 38 + "ing"

    assert document_of(encoder, f"{fits} {too_long}") == document_of(encoder, fits)
    assert document_of(encoder, fits).keys() == {number(fits)}


def test_the_stop_words_are_the_published_ones():
    """179 words in 936 bytes, one a line; another list would be another space."""
    assert len(ENGLISH_STOP_WORDS) == 179
    assert sum(len(word) + 1 for word in ENGLISH_STOP_WORDS) == 936


def test_the_name_of_the_space_is_pinned(encoder: BM25Encoder):
    """It is stored beside vectors. If it changes, vectors of before no longer fit new ones."""
    assert encoder.fingerprint == "bm25-v1:1cb9275e6861369f77e9d082859942ea"


def test_another_stemmer_has_another_name(encoder: BM25Encoder, monkeypatch: pytest.MonkeyPatch):
    """Upgrading the stemmer's package must not mix two spaces unseen."""
    monkeypatch.setattr(bm25, "SnowballStemmer", lambda language: SnowballStemmer("german"))

    assert BM25Encoder().fingerprint != encoder.fingerprint


# --- piece by piece -------------------------------------------------------------------------


def test_only_the_dotted_i_lower_cases_to_more_than_one_character():
    """What the cutting rests on; a new version of Unicode may say otherwise."""
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    words = [character for character in characters if re.match(r"\w", character)]

    assert [character for character in characters if len(character.lower()) != 1] == ["İ"]
    assert [word for word in words if not re.fullmatch(r"\w+", word.lower())] == ["İ"]
    assert [word for word in words if unicodedata.category(word).startswith("P")] == ["_"]


UNITS = (
    *("İ", "Σ", "ΑΣ", "σ", "a", "B", "running", "The", "don't", "_", "__", " ", "\n", "."),
    *("\u0307", "\u0301", "\u00ad", "ʰ", "Ⓐ", "ß", "é", "中", "٣", "²", "x" * 39, "y" * 41),
)


@given(st.lists(st.sampled_from(UNITS), max_size=30).map("".join))
@example("İΣ ΑΣİ ΑΣ\u0301Α")
def test_pieces_give_what_the_whole_text_gives(encoder: BM25Encoder, text: str):
    """Cuts must not show, whatever letters stand beside them."""
    with small_pieces():
        found = document_of(encoder, text)

    assert found == pytest.approx(recipe_document(text), abs=1e-6)


@given(st.text(max_size=60))
def test_any_text_gives_what_the_recipe_gives(encoder: BM25Encoder, text: str):
    """Over all of Unicode."""
    with small_pieces():
        document = document_of(encoder, text)
        query = as_map(encoder.encode_queries([text])[0])

    assert document == pytest.approx(recipe_document(text), abs=1e-6)
    assert query == {number(stem): 1.0 for stem in recipe_stems(text)}


def test_a_text_of_many_pieces_gives_what_the_recipe_gives(encoder: BM25Encoder):
    """With the real size of a piece, and words across where it would end."""
    text = "".join(f"Shipping{n % 997} İn the ΠΟΛΙΣ, {'z' * (n % 50)} " for n in range(5_000))
    assert len(text) > 10 * bm25.PIECE_CHARACTERS

    assert document_of(encoder, text) == pytest.approx(recipe_document(text), abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: "Shipbuilding_headquarters_notwithstanding, " * (n // 43),
        lambda n: "x" * n,
        lambda n: " " * n,
        lambda n: ("X" * 400 + "İ") * (n // 401),
    ],
    ids=["few-words", "one-long-word", "blanks", "one-long-word-with-dots"],
)
def test_a_text_of_20_mb_costs_next_to_nothing_beside_itself(
    encoder: BM25Encoder, make: Callable[[int], str]
):
    """BM25 answers when memory is short: it may not copy the text or list its words."""
    text = make(20_000_000)
    tracemalloc.start()
    try:
        encoder.encode_documents([text])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 1 * MIB


def test_what_is_held_of_a_text_is_its_vocabulary(encoder: BM25Encoder):
    """The docstring's figure, which whoever admits requests may reckon with."""
    n_words = 100_000
    text = " ".join(f"{n:x}中文" for n in range(n_words))
    tracemalloc.start()
    try:
        (vector,) = encoder.encode_documents([text])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(vector.indices) > 0.99 * n_words
    assert peak_bytes < 200 * n_words


def test_threads_may_share_an_encoder(encoder: BM25Encoder):
    """The stemmer is a foreign object; some of those belong to the thread that made them."""
    texts = [f"ships number{n} sailing" for n in range(64)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: document_of(encoder, text), texts))

    assert found == [document_of(encoder, text) for text in texts]


# --- ranking --------------------------------------------------------------------------------


def test_documents_are_ranked_by_okapi_bm25():
    """Its formula by hand: k1 1.5, b 0.75, and log((N − n + 0.5) / (n + 0.5)) for rarity."""
    documents = ["Ship, ship!", "a ship at sea", "nothing", "else here", ""]
    mean_length = (2 + 4 + 1 + 2 + 0) / 5

    def weight(n: int, length: int) -> float:
        return n * 2.5 / (n + 1.5 * (0.25 + 0.75 * length / mean_length))

    rarity = math.log((5 - 2 + 0.5) / (2 + 0.5))
    scores = rank_documents("The SHIP?", documents)

    assert scores.dtype == np.float64
    expected = [rarity * weight(2, 2), rarity * weight(1, 4), 0, 0, 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_documents_of_every_script_are_ranked_by_their_words():
    """A Russian list came back in the order in which it was sent, and German words as pieces."""
    documents = ["собака", "КОРАБЛЬ идёт по морю", "Große Häfen", "Gr und fen", "nothing"]

    assert np.argmax(rank_documents("корабль", documents)) == 1
    assert rank_documents("große Häfen", documents).nonzero()[0].tolist() == [2]


def test_a_word_that_a_query_repeats_counts_as_often():
    """As in rank_bm25, though it is looked up once."""
    documents = ["a ship", "the sea", "none", "at all"]

    twice = rank_documents("ship sea ship", documents)

    expected = 2 * rank_documents("ship", documents) + rank_documents("sea", documents)
    np.testing.assert_allclose(twice, expected)
    assert twice[0] > twice[1] > 0


@pytest.mark.parametrize(
    ("query", "documents"),
    [("ship", []), ("ship", [""]), ("ship", ["", "…", "中"]), ("", ["ship"]), ("?", ["ship"])],
)
def test_where_there_is_nothing_to_compare_scores_are_zero(query: str, documents: list[str]):
    """rank_bm25 divides by zero there; the answer of last resort may not fail."""
    np.testing.assert_array_equal(rank_documents(query, documents), np.zeros(len(documents)))


LETTERS = [chr(code) for code in (*range(0x4E00, 0x9FFF), *range(0xAC00, 0xD7A3))]
SHORT_WORDS = ["".join(letters) for letters in product("abcdefghijklmnopqrstuvwxyz", repeat=3)]


@pytest.mark.parametrize(
    "documents",
    [
        [" ".join(SHORT_WORDS)],
        [" ".join(SHORT_WORDS[:1000])] * 20,
        [" ".join(LETTERS[:22_000])],
        ["ab " * 20_000],
        ["İ" * 20_000],
        ["a ship at sea"] * 1000,
        ["x" * 100_000],
    ],
    ids=["short", "many", "letters", "one", "split", "prose", "long"],
)
def test_ranking_takes_no_more_than_is_reserved_for_it(documents: list[str]):
    """It is what answers where memory is short: documents of short words, each another one, took
    four times what was reserved."""
    demand = ranking_demand(documents, count_words(documents))
    tracemalloc.start()
    try:
        rank_documents("ship abc", documents)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes <= demand.held_bytes


@given(st.lists(st.text(max_size=200), max_size=5))
def test_words_are_counted_as_they_are_ranked(texts: list[str]):
    """What is reserved goes by this number."""
    assert count_words(texts) == sum(len(_WORD.findall(text.lower())) for text in texts)


def test_a_query_of_unknown_words_scores_zero():
    """Not an error, and not a random order."""
    np.testing.assert_array_equal(rank_documents("anchor", ["ship", "sea", "port"]), np.zeros(3))


def test_a_text_of_more_words_than_are_allowed_is_refused_early():
    """Only different words take memory, so they are what is bounded."""
    encoder = BM25Encoder(most_stems=1000)
    many = " ".join(f"w{number}" for number in range(20_000))

    with pytest.raises(TooLargeError, match="1000 different words"):
        encoder.encode_documents([many])
    (vector,) = encoder.encode_documents(["ship sea " * 5000])
    assert len(vector.indices) == 2
