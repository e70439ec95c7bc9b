"""What requests take: what they hold from their admission to their reply, and their runs. Pure.

Byte constants are measured with 64-bit CPython and orjson, or follow from array types.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from plimsoll.policy.priority import Priority, priority_of

# Texts whose rows wait for each other before they are cut and normalised.
BATCH_TEXTS = 256
# A request has so many texts in the engine's queue: a run is under way while the next one waits.
WINDOW_TEXTS = 128

ID_BYTES = 8
# While texts are tokenized, room for their ids is asked for in steps of at least this.
IDS_STEP_BYTES = 64 << 10
FLOAT32_BYTES, FLOAT64_BYTES = 4, 8
# A float32 with its comma, as short as it can be told from its neighbours.
JSON_NUMBER_BYTES = 12
# Arrays, futures and records of a text of any length.
TEXT_BYTES = 1024
# A word of a sparse vector in a reply: its number and its value, as JSON whose buffer grows by
# doubling, and the arrays they come from; and where each stands there with their names.
SPARSE_TERM_BYTES = 64
SPARSE_RECORD_BYTES = 176
# A distinct word while a text is counted.
STEM_BYTES = 200
# No text has more different words than this; the largest dictionaries do.
MOST_STEMS = 100_000
# A word of a document that is ranked: its letters, its counts in the document and in all of them,
# its rarity, in tables that grow by doubling.
RANKED_WORD_BYTES = 288
# A character of a text while it is made lower case: CPython takes room for three of them besides.
LOWERED_CHARACTER_BYTES = 16
# English words, with what stands between them, over their word pieces.
CHARACTERS_PER_TOKEN = 5
# A token with its place: in arrays of 20 bytes, and as 75 of JSON whose buffer grows by doubling,
# beside what a list of records takes while it is written.
TOKEN_SPAN_BYTES = 288
# The id of a token that becomes text: in the library's lists, and its piece of the text twice.
DECODED_ID_BYTES = 160
# What JSON writes as six bytes, and as two.
SIX_BYTES = re.compile("[\x00-\x07\x0b\x0e-\x1f]")
TWO_BYTES = ('"', "\\", "\n", "\r", "\t", "\b", "\f")


@dataclass(frozen=True)
class Demand:
    """What a request will take.

    n_tokens: of all its texts, as they run. waiting_tokens: of those that stand in the engine's
        queue at once; a long list has only a window of its texts there, and others pass it.
    held_bytes: kept from its admission to the end of its reply.
    run_bytes: peak of its largest single run, which is its longest text alone.
    is_fallback: it stands in for something larger that found no room, and may pass the line.
    priority: class of its texts.
    yields: it is background work, which leaves room to others (admission.py).
    """

    n_tokens: int
    held_bytes: int
    run_bytes: int = 0
    is_fallback: bool = False
    waiting_tokens: int | None = None  # None: all
    priority: Priority = Priority.INTERACTIVE
    yields: bool = False

    @property
    def peak_bytes(self) -> int:
        """The most that it takes at one moment."""
        return self.held_bytes + self.run_bytes


NOTHING = Demand(0, 0)


def door_demand(size: int, priority: Priority) -> Demand:
    """What a request asks for before its tokens are known: a place in the queue of its class.

    size: bytes of its body, or characters of its texts; 0: not known.
    """
    n_tokens = max(1, size // CHARACTERS_PER_TOKEN)
    return Demand(n_tokens, held_bytes=0, waiting_tokens=0, priority=priority)


@dataclass
class TextSizes:
    """Sums over the tokens of texts, as they come. window_tokens: of the first WINDOW_TEXTS."""

    n_texts: int = 0
    n_tokens: int = 0
    longest: int = 0
    window_tokens: int = 0

    @classmethod
    def of(cls, lengths: Iterable[int]) -> "TextSizes":
        """Of texts of so many tokens each."""
        sizes = cls()
        sizes.add(lengths)
        return sizes

    @property
    def ids_bytes(self) -> int:
        """What their ids take."""
        return self.n_tokens * ID_BYTES

    def add(self, lengths: Iterable[int]) -> None:
        """Take more texts."""
        for length in lengths:
            if self.n_texts < WINDOW_TEXTS:
                self.window_tokens += length
            self.n_texts += 1
            self.n_tokens += length
            self.longest = max(self.longest, length)


def held_bytes(
    sizes: TextSizes, *, hidden: int, dimensions: int, encodings: int = 1, echoed_bytes: int = 0
) -> int:
    """What a request keeps for its texts.

    Ids, a float32 vector a text, the pooled rows of one batch in float64 and their copy, and a
    JSON reply whose buffer grows by doubling, with so many `encodings` of each vector and so many
    bytes of what was sent.
    """
    batch_bytes = min(sizes.n_texts, BATCH_TEXTS) * hidden * 2 * FLOAT64_BYTES
    value_bytes = FLOAT32_BYTES + 2 * JSON_NUMBER_BYTES * encodings
    text_bytes = TEXT_BYTES + dimensions * value_bytes
    return sizes.ids_bytes + batch_bytes + sizes.n_texts * text_bytes + 3 * echoed_bytes


def utf8_bytes(texts: Iterable[str]) -> int:
    """The most that texts take as UTF-8, without making it."""
    return sum(len(text) if text.isascii() else 4 * len(text) for text in texts)


def json_bytes(texts: Iterable[str]) -> int:
    """The most that texts take as JSON, without making it."""
    n_bytes = 0
    for text in texts:
        if SIX_BYTES.search(text):
            n_bytes += 6 * len(text)
        else:
            n_bytes += utf8_bytes([text]) + sum(map(text.count, TWO_BYTES))
    return n_bytes


def dense_demand(
    sizes: TextSizes,
    run_bytes: Callable[[Sequence[int]], int],
    *,
    hidden: int,
    dimensions: int,
    priority: Priority | None = None,
    encodings: int = 1,
    echoed_bytes: int = 0,
) -> Demand:
    """What texts take; `run_bytes` predicts the peak of one run of texts of so many tokens.

    priority: the class that is asked for; None: by their size. What asks for bulk yields to
        others; a long list of a client that waits does not. encodings, echoed_bytes: of the reply,
        as in `held_bytes`.
    """
    held = held_bytes(
        sizes, hidden=hidden, dimensions=dimensions, encodings=encodings, echoed_bytes=echoed_bytes
    )
    return Demand(
        n_tokens=sizes.n_tokens,
        held_bytes=held,
        run_bytes=run_bytes([sizes.longest]) if sizes.longest else 0,
        waiting_tokens=sizes.window_tokens,
        priority=priority_of(sizes.n_tokens, priority),
        yields=priority is Priority.BULK,
    )


def sparse_demand(texts: Sequence[str], *, term_bytes: int = SPARSE_TERM_BYTES) -> Demand:
    """What BM25 takes for these texts, by the most different words that so many letters hold.

    term_bytes: what a word takes in the reply. All of it counts beside the engine's runs: it is
    done in another thread. It may pass the memory line whether it was asked for or stands in:
    otherwise a client that asks for little would be refused where those that ask for more are
    answered.
    """
    most_terms = sum(min(len(text) // 2 + 1, MOST_STEMS) for text in texts)
    longest = max(map(len, texts), default=0)
    return Demand(
        n_tokens=0,
        held_bytes=most_terms * term_bytes
        + len(texts) * TEXT_BYTES
        + min(longest // 2 + 1, MOST_STEMS) * STEM_BYTES,
        is_fallback=True,
    )


def token_states_bytes(n_tokens: int, hidden: int) -> int:
    """What the states of all tokens take, as float32 and as JSON whose buffer grows by doubling."""
    return n_tokens * hidden * (FLOAT32_BYTES + 2 * JSON_NUMBER_BYTES)


def token_spans_demand(texts: Iterable[str]) -> Demand:
    """What tokens with their places take, with their reply.

    A letter is a token at the most; beyond ASCII normalisation may make several of it.
    """
    held = [TEXT_BYTES + TOKEN_SPAN_BYTES * utf8_bytes([text]) for text in texts]
    return Demand(n_tokens=0, held_bytes=sum(held))


def decoding_demand(ids: Iterable[Sequence[int]]) -> Demand:
    """What lists of ids take while they become texts."""
    held = [TEXT_BYTES + DECODED_ID_BYTES * len(each) for each in ids]
    return Demand(n_tokens=0, held_bytes=sum(held))


def ranking_demand(documents: Sequence[str], n_words: int) -> Demand:
    """What rank-bm25 takes, likewise: it keeps the words of all documents at once.

    n_words: of all documents, where each may be another one.
    """
    longest = max(map(len, documents), default=0)
    return Demand(
        n_tokens=0,
        held_bytes=len(documents) * TEXT_BYTES
        + RANKED_WORD_BYTES * n_words
        + LOWERED_CHARACTER_BYTES * longest,
        is_fallback=True,
    )


# A document may take so much as a line of JSON, its vector included.
MOST_LINE_BYTES = 1 << 20
# A batch of documents as parsed; one that is larger alone is kept besides.
INGEST_BATCH_BYTES = 4 << 20
# The batch, a line while it is read, and what its vectors and its storing take.
INGEST_BYTES = 8 << 20
# Pages of the file of collections, and the documents of some words while they are ranked.
WORD_SEARCH_BYTES = 4 << 20
# Rows of vectors that a search looks at together: as SQLite gives them, joined, and of unit length.
SEGMENT_ROWS = 1024
SEGMENT_COPIES = 4
# Of documents listed one page after another, text and metadata, and the values of their vectors; a
# document that is larger alone is a page.
LISTED_BYTES = 1 << 20
LISTED_NUMBERS = 128 << 10
# A number as float32 and twice as JSON.
LISTED_NUMBER_BYTES = 36
# A byte of a document that is found: as text and as JSON of a reply, which may escape it. Metadata
# stay the JSON that they are stored as.
FOUND_BYTES = 8


def vector_search_demand(dimensions: int) -> Demand:
    """What a search among any number of vectors takes."""
    segment_bytes = SEGMENT_ROWS * dimensions * FLOAT32_BYTES
    return Demand(n_tokens=0, held_bytes=WORD_SEARCH_BYTES + SEGMENT_COPIES * segment_bytes)


def word_search_demand() -> Demand:
    """What a search by words takes; like BM25's other uses it may pass the memory line."""
    return Demand(n_tokens=0, held_bytes=WORD_SEARCH_BYTES, is_fallback=True)


def listing_demand() -> Demand:
    """What a page of listed documents takes, with its reply."""
    return Demand(
        n_tokens=0,
        held_bytes=FOUND_BYTES * (LISTED_BYTES + MOST_LINE_BYTES)
        + LISTED_NUMBER_BYTES * LISTED_NUMBERS,
    )


def found_documents_bytes(n_documents: int, n_bytes: int) -> int:
    """What documents take that are found, with their reply; n_bytes: as they are stored."""
    return n_documents * TEXT_BYTES + FOUND_BYTES * n_bytes
