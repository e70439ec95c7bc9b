"""Embeds in the background: as any client does, behind live requests, and with patience.

A refusal to protect what is under way is waited out for as long as it asks, and is shown; a text
that the engine cannot do is found among its neighbours, tried again, and given up with a reason.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from plimsoll.corpora.records import Space, StoredDocument
from plimsoll.corpora.spaces import check_space
from plimsoll.errors import EncodeError, ModelLoadingError, OverloadError, TooLargeError
from plimsoll.policy.priority import Priority
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.fallback import SHORT_RETRY_S
from plimsoll.serving.gate import AdmissionGate
from plimsoll.serving.tasks import Embeddings, EmbedTask

MOST_ATTEMPTS = 3
QUERIES_AT_ONCE = 64

Pause = Callable[[float], Awaitable[None]]
Yielding = Callable[[str | None], None]


@dataclass
class DocumentVectors:
    """What became of documents: by row a vector, or why there is none and after how many tries."""

    vectors: dict[int, np.ndarray] = field(default_factory=dict)  # float32 (dimensions,)
    failures: dict[int, tuple[str, int]] = field(default_factory=dict)
    n_tokens: int = 0


class PatientEmbedder:
    """Embeds texts into the space of one version.

    yielding: told why nothing is embedded now, and None when it goes on. pause: waits seconds.
    """

    def __init__(
        self,
        embeddings: EmbeddingService,
        gate: AdmissionGate,
        collection: str,
        space: Space,
        yielding: Yielding,
        pause: Pause,
    ) -> None:
        self._embeddings = embeddings
        self._gate = gate
        self._collection = collection
        self._space = space
        self._yielding = yielding
        self._pause = pause

    async def embed(self, texts: Sequence[str], input_type: str) -> Embeddings:
        """Embed a list; refusals are waited out.

        Raises SpaceMismatchError where the model gives vectors of another space, ModelErrors,
        UnknownModelError, TooLargeError and EncodeError.
        """
        task = EmbedTask(
            texts,
            input_type,
            dimensions=self._space.dimensions,
            model=self._space.model,
            priority=Priority.BULK,
        )
        while True:
            permit = self._gate.permit()
            try:
                answer = await self._embeddings.embed_dense(task, permit)
                break
            except (OverloadError, ModelLoadingError) as error:
                refusal, wait_s = str(error), error.retry_after_s
            finally:
                permit.leave()
            self._yielding(refusal)
            await self._pause(wait_s)
        self._yielding(None)
        check_space(self._collection, self._space, answer)
        return answer

    async def embed_queries(self, queries: Sequence[str]) -> list[np.ndarray | None]:
        """Vectors of queries; None of one that cannot be embedded. Raises as `embed` otherwise."""
        found = list[np.ndarray | None]()
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            found += await self._some_queries(queries[start : start + QUERIES_AT_ONCE])
        return found

    async def embed_documents(self, documents: Sequence[StoredDocument]) -> DocumentVectors:
        """Embed what can be embedded, and say of the rest why not. Raises as `embed` otherwise."""
        found = DocumentVectors()
        if documents:
            await self._add(found, documents)
        return found

    async def _some_queries(self, queries: Sequence[str]) -> list[np.ndarray | None]:
        try:
            return (await self.embed(queries, "search_query")).vectors
        except (EncodeError, TooLargeError):
            if len(queries) == 1:
                return [None]
        middle = len(queries) // 2
        first = await self._some_queries(queries[:middle])
        return first + await self._some_queries(queries[middle:])

    async def _add(self, found: DocumentVectors, documents: Sequence[StoredDocument]) -> None:
        try:
            answer = await self.embed([each.text for each in documents], "search_document")
        except (EncodeError, TooLargeError) as error:
            if len(documents) == 1 and isinstance(error, TooLargeError):
                found.failures[documents[0].row] = (str(error), 1)  # and would be the next time
                return
            if len(documents) == 1:
                await self._try_again(found, documents[0], str(error))
                return
            middle = len(documents) // 2
            await self._add(found, documents[:middle])
            await self._add(found, documents[middle:])
            return
        found.n_tokens += answer.n_tokens
        for document, vector in zip(documents, answer.vectors, strict=True):
            if vector is not None:
                found.vectors[document.row] = vector
        for failure in answer.failures:
            await self._try_again(
                found, documents[failure.index], f"{failure.code}: {failure.message}"
            )

    async def _try_again(
        self, found: DocumentVectors, document: StoredDocument, reason: str
    ) -> None:
        """Try one text by itself, since its neighbours or the moment may have been at fault."""
        for attempt in range(2, MOST_ATTEMPTS + 1):
            try:
                answer = await self.embed([document.text], "search_document")
            except EncodeError as error:
                reason = str(error)
                await self._pause(SHORT_RETRY_S)
                continue
            except TooLargeError as error:
                found.failures[document.row] = (str(error), attempt)
                return
            (vector,) = answer.vectors
            if vector is not None:
                found.vectors[document.row] = vector
                found.n_tokens += answer.n_tokens
                return
            (failure,) = answer.failures
            reason = f"{failure.code}: {failure.message}"
        found.failures[document.row] = (reason, MOST_ATTEMPTS)
