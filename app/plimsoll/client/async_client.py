"""`AsyncClient` sends on the event loop that calls it."""

import asyncio
from collections.abc import Mapping, Sequence
from math import isinf
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from plimsoll.client.asking import DEADLINE_S, Answer, Ask, OnWait, Pause, Steps
from plimsoll.client.calls import Calls, Priority
from plimsoll.client.embedding import EmbedOptions
from plimsoll.client.over_httpx import URL, headers_of, sent_by, told
from plimsoll.client.replies import Embeddings, Ranking, SearchResults, SparseEmbeddings
from plimsoll.errors import NoAnswerError

T = TypeVar("T")


class AsyncClient:
    """`Client` for an event loop: the same calls, awaited."""

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float = DEADLINE_S,
        max_retries: int | None = None,
        on_wait: OnWait | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """As that of `Client`."""
        self._calls = Calls(url, deadline_s, max_retries, on_wait)
        self._headers = headers_of(key, headers)
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        priority: Priority | None = None,
        deadline_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """As `Client.embed`."""
        return await self._run(self._calls.embed(texts, options, priority, deadline_s))

    async def embed_or_words(
        self,
        texts: str | Sequence[str],
        *,
        priority: Priority | None = None,
        deadline_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings | SparseEmbeddings:
        """As `Client.embed_or_words`."""
        return await self._run(self._calls.embed_or_words(texts, options, priority, deadline_s))

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        model: str | None = None,
        priority: Priority | None = None,
        deadline_s: float | None = None,
    ) -> Ranking:
        """As `Client.rank`."""
        steps = self._calls.rank(query, documents, top_k, model, priority, deadline_s)
        return await self._run(steps)

    async def search(
        self,
        collection: str,
        query: str,
        *,
        top_k: int = 10,
        mode: str = "auto",
        where: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> SearchResults:
        """As `Client.search`."""
        steps = self._calls.search(collection, query, top_k, mode, where, deadline_s)
        return await self._run(steps)

    async def health(self, *, deadline_s: float | None = None) -> Any:
        """As `Client.health`."""
        return await self.request("GET", "/health", deadline_s=deadline_s)

    async def request(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        lines: bytes | None = None,
        parameters: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> Any:
        """As `Client.request`."""
        steps = self._calls.request(method, path, content, lines, parameters or {}, deadline_s)
        return await self._run(steps)

    async def close(self) -> None:
        """End the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    done = await self._do(step)
                except NoAnswerError as lost:
                    step = steps.throw(lost)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            found: T = end.value
            return found

    async def _do(self, step: Ask | Pause) -> Answer | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        with told(self._calls.url):
            async with asyncio.timeout(None if isinf(step.timeout_s) else step.timeout_s):
                response = await self._http.request(**sent_by(step, self._calls, self._headers))
        return Answer(response.status_code, response.headers, response.content)
