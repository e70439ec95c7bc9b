"""What clients ask: each call as the steps that it takes, and the terms that hold for all calls."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit

from plimsoll.client.asking import Ask, OnWait, Patience, Steps, as_json, ask
from plimsoll.client.embedding import EmbedOptions, embed
from plimsoll.client.replies import (
    Embeddings,
    Ranking,
    SearchResults,
    SparseEmbeddings,
    ranking_of,
    reading,
    search_results_of,
)
from plimsoll.errors import InvalidRequestError

Priority = Literal["interactive", "bulk"]


@dataclass(frozen=True)
class Calls:
    """The calls to the server at `url`, each within `deadline_s` unless it is given another."""

    url: str
    deadline_s: float
    max_retries: int | None
    on_wait: OnWait | None

    def __post_init__(self) -> None:
        """Raises InvalidRequestError for an address that is none."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequestError(f"{self.url!r} is no address such as http://127.0.0.1:8080")

    def address(self, path: str) -> str:
        """Of a route below the server's own address."""
        return self.url.rstrip("/") + path

    def embed(
        self,
        texts: str | Sequence[str],
        options: EmbedOptions,
        priority: Priority | None,
        deadline_s: float | None,
    ) -> Steps[Embeddings]:
        """Dense vectors alone."""
        steps = embed(texts, options, "none", _headers(priority), self._patience(deadline_s))
        return cast("Steps[Embeddings]", steps)  # which `none` says

    def embed_or_words(
        self,
        texts: str | Sequence[str],
        options: EmbedOptions,
        priority: Priority | None,
        deadline_s: float | None,
    ) -> Steps[Embeddings | SparseEmbeddings]:
        """Dense vectors, or words for all texts."""
        return embed(texts, options, "bm25", _headers(priority), self._patience(deadline_s))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None,
        model: str | None,
        priority: Priority | None,
        deadline_s: float | None,
    ) -> Steps[Ranking]:
        """POST /rank."""
        body = {"query": query, "documents": list(documents), "top_k": top_k, "model": model}
        request = Ask("POST", "/rank", as_json(body, "content"), _headers(priority))
        answer = yield from ask(request, self._patience(deadline_s))
        with reading():
            return ranking_of(answer)

    def search(
        self,
        collection: str,
        query: str,
        top_k: int,
        mode: str,
        where: Mapping[str, Any] | None,
        deadline_s: float | None,
    ) -> Steps[SearchResults]:
        """POST /collections/{name}/search."""
        body = {"query": query, "top_k": top_k, "mode": mode, "filter": where}
        path = f"/collections/{quote(collection, safe='')}/search"
        request = Ask("POST", path, as_json(body, "content"))
        answer = yield from ask(request, self._patience(deadline_s))
        with reading():
            return search_results_of(answer)

    def request(
        self,
        method: str,
        path: str,
        content: object,
        lines: bytes | None,
        parameters: Mapping[str, Any],
        deadline_s: float | None,
    ) -> Steps[Any]:
        """Any route."""
        body = b"" if content is None else as_json(content, "content")
        headers = {}
        if lines is not None:
            body, headers = lines, {"Content-Type": "application/x-ndjson"}
        # Lines are documents: one that is stored already is skipped.
        is_repeatable = method != "POST" or lines is not None
        request = Ask(method, path, body, headers, parameters, is_repeatable)
        return ask(request, self._patience(deadline_s))

    def _patience(self, deadline_s: float | None) -> Patience:
        most_s = self.deadline_s if deadline_s is None else deadline_s
        return Patience(most_s, self.max_retries, self.on_wait, time.monotonic)


def _headers(priority: Priority | None) -> dict[str, str]:
    return {} if priority is None else {"X-Priority": priority}
