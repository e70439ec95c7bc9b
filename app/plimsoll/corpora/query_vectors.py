"""A search's query in the space of each version that the search reads.

It is embedded once a space. A version whose model does not answer now is left out where another one
behind it answers for its documents too: all but the active one may be. Bridged vectors are asked by
the query of the space that they lead to. They are there for every document of the active version,
which then only stands in for them; one that no query can be embedded for does not even do that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plimsoll.corpora.parts import SearchPart
from plimsoll.corpora.records import Collection, Space, Version
from plimsoll.corpora.spaces import check_space
from plimsoll.corpora.tasks import SearchTask
from plimsoll.errors import (
    CacheError,
    EncodeError,
    GGUFError,
    InvalidRequestError,
    ModelError,
    SpaceMismatchError,
    TooLargeError,
    UnknownModelError,
)
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.fallback import DEGRADING
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import Embeddings, EmbedTask, raise_first

# The version or its model is at fault, if it is none of DEGRADING: waiting would not help.
AT_FAULT = (SpaceMismatchError, ModelError, GGUFError, CacheError, EncodeError)
# Why a query has no vector of a version, now or for good.
UNEMBEDDED = (*DEGRADING, *AT_FAULT, TooLargeError)
# Said in every such answer.
BRIDGED = (
    "documents that are not embedded yet are found by bridged vectors: old ones, mapped near the "
    "new ones"
)


@dataclass(frozen=True)
class QueryParts:
    """The parts that a query is compared with, in order of their precedence. warnings: of both."""

    parts: list[SearchPart]
    warnings: list[str]
    n_tokens: int
    n_left_out: int

    @property
    def dimensions(self) -> int:
        """Of the widest part."""
        return max(part.version.space.dimensions for part in self.parts)


class QueryVectors:
    """Embeds queries as any client does."""

    def __init__(self, embeddings: EmbeddingService) -> None:
        self._embeddings = embeddings

    async def of(
        self, task: SearchTask, collection: Collection, permit: RequestPermit
    ) -> QueryParts:
        """The query as each version that searches of the collection read takes it.

        Raises SpaceMismatchError and what EmbeddingService.embed_dense does, of the last version.
        """
        if any(version.space.is_bridge for version in collection.ahead):
            return await self._bridged(task, collection, permit)
        if collection.ahead and collection.active.space.is_foreign:
            return await self._of(task, collection.ahead, permit)
        return await self._of(task, collection.parts, permit)

    async def _bridged(
        self, task: SearchTask, collection: Collection, permit: RequestPermit
    ) -> QueryParts:
        """Likewise, of the versions ahead; the active one stands in where these have no answer."""
        try:
            found = await self._of(task, collection.ahead, permit)
        except UNEMBEDDED as error:
            if collection.active.space.is_foreign:
                raise
            permit.drop()
            old = await self._of(task, (collection.active,), permit)
            told = f"new and bridged vectors are left out, and the old ones stand in: {error}"
            n_left_out = len(collection.ahead)
            return replace(old, warnings=[told, *old.warnings], n_left_out=n_left_out)
        return replace(found, warnings=[BRIDGED, *found.warnings])

    async def _of(
        self, task: SearchTask, versions: Sequence[Version], permit: RequestPermit
    ) -> QueryParts:
        """Likewise, of these versions, of which the last one has to answer."""
        served = {version.space.fingerprint: version.space for version in versions}
        # Bridged vectors by themselves are of no space that a query can be embedded into.
        spaces = [served.get(each.space.query_fingerprint, each.space) for each in versions]
        last = spaces[-1]
        embedded = {last: await self._embedded(task, last, permit)}
        warnings, parts = list[str](), list[SearchPart]()
        for version, space in zip(versions, spaces, strict=True):
            if space not in embedded:
                try:
                    embedded[space] = await self._embedded(task, space, permit)
                except UNEMBEDDED as error:
                    permit.drop()
                    warnings.append(
                        f"vectors of {space.fingerprint} are left out, and their documents found "
                        f"by others: {error}"
                    )
                    continue
            (vector,) = embedded[space].vectors
            assert vector is not None  # noqa: S101 - its failure has been raised
            parts.append(SearchPart(version, vector))
        answers = embedded.values()
        warnings += [note for each in answers for note in (*each.traits.notes, *_cut(each))]
        return QueryParts(
            parts,
            [*dict.fromkeys(warnings)],
            sum(each.n_tokens for each in answers),
            len(versions) - len(parts),
        )

    async def _embedded(self, task: SearchTask, space: Space, permit: RequestPermit) -> Embeddings:
        """The query in one space. Raises SpaceMismatchError where it has no vector."""
        if space.is_foreign:
            raise SpaceMismatchError(
                f"the vectors of {task.collection!r} are of the space {space.fingerprint!r}, into "
                "which no model here embeds a query; mode bm25 searches by words"
            )
        try:
            query = await self._embeddings.embed_dense(
                EmbedTask(
                    [task.query],
                    "search_query",
                    dimensions=space.dimensions,
                    model=space.model,
                    priority=task.priority,
                ),
                permit,
            )
        except (UnknownModelError, InvalidRequestError) as error:  # not served, or cut down
            raise SpaceMismatchError(
                f"the vectors of {task.collection!r} are of {space.fingerprint} by "
                f"{space.model!r}: {error}"
            ) from error
        check_space(task.collection, space, query)
        raise_first(query.failures, lambda index: "query", param="query")
        return query


def _cut(query: Embeddings) -> list[str]:
    return [
        f"query: only the first {cut.kept} of its {cut.tokens} tokens count"
        for cut in query.truncated
    ]
