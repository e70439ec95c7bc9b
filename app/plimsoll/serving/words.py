"""The use case of sparse vectors: the words of texts, as BM25 weighs them, without a model."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

from plimsoll.policy.costs import BATCH_TEXTS, MOST_STEMS, SPARSE_TERM_BYTES, sparse_demand
from plimsoll.retrieval.bm25 import BM25Encoder
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import Degraded, EmbedTask, SparseEmbeddings
from plimsoll.serving.threads import run_in

# Words of so many characters are counted in some tens of milliseconds.
BATCH_CHARACTERS = 256 << 10


class WordsService:
    """Encodes texts with BM25. thread: counts their words."""

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._bm25 = BM25Encoder(most_stems=MOST_STEMS)

    async def encode(
        self,
        task: EmbedTask,
        permit: RequestPermit,
        degraded: Degraded | None = None,
        *,
        term_bytes: int = SPARSE_TERM_BYTES,
    ) -> SparseEmbeddings:
        """A sparse vector of each text. degraded: what it stands in for, if it was not asked for.

        term_bytes: what a word takes in the reply. Raises OverloadError and TooLargeError.
        """
        demand = sparse_demand(task.texts, term_bytes=term_bytes)
        if degraded:  # it has waited already
            permit.renew_now(demand)
        else:
            await permit.renew(demand)
        encode = (
            self._bm25.encode_queries
            if task.input_type == "search_query"
            else self._bm25.encode_documents
        )
        vectors = []
        for batch in _word_batches(task.texts):
            vectors += await run_in(self._thread, encode, batch)
        return SparseEmbeddings(self._bm25.fingerprint, vectors, degraded)


def _word_batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts that the thread takes at once, so that one request does not keep the others waiting."""
    start = n_characters = 0
    for place, text in enumerate(texts):
        n_characters += len(text)
        if n_characters >= BATCH_CHARACTERS or place - start + 1 >= BATCH_TEXTS:
            yield texts[start : place + 1]
            start, n_characters = place + 1, 0
    if start < len(texts):
        yield texts[start:]
