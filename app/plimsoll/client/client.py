"""`Client` sends in the thread that calls it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
import orjson

from plimsoll.client.asking import DEADLINE_S, Answer, Ask, OnWait, Pause, Steps, content_of
from plimsoll.client.calls import Calls, Priority
from plimsoll.client.embedding import EmbedOptions
from plimsoll.client.over_httpx import URL, headers_of, sent_by, timeout_of, told
from plimsoll.client.replies import Embeddings, Ranking, SearchResults, SparseEmbeddings
from plimsoll.errors import NoAnswerError

T = TypeVar("T")


class Client:
    """Asks the server at `url`. Owns its connections; `close` ends them.

        with Client("http://127.0.0.1:8080") as client:
            print(client.embed(["A mark on a hull", "A load line"]).vectors.shape)

    Any number of threads may share one.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float = DEADLINE_S,
        max_retries: int | None = None,
        on_wait: OnWait | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        """Connect to nothing yet.

        key: one of PLIMSOLL_API_KEYS. headers: sent along with every request.
        deadline_s: what a call may take in all, tries and waits included; math.inf: no end.
        max_retries: None: as often as the server says when, until the deadline.
        on_wait: told why a call waits, and for how many seconds.
        http: for a proxy or certificates of your own; not closed here.
        Raises InvalidRequestError for an address that is none.
        """
        self._calls = Calls(url, deadline_s, max_retries, on_wait)
        self._headers = headers_of(key, headers)
        self._http = http or httpx.Client()
        self._owns_http = http is None

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        priority: Priority | None = None,
        deadline_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """Vectors of a text or of a list of any length, which goes in several requests.

        Raises RefusedError and NoAnswerError; `answered` of either has the vectors of the texts
        before, so that the rest can be asked for later.
        """
        return self._run(self._calls.embed(texts, options, priority, deadline_s))

    def embed_or_words(
        self,
        texts: str | Sequence[str],
        *,
        priority: Priority | None = None,
        deadline_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings | SparseEmbeddings:
        """Vectors, or BM25 vectors of words where memory is short: all of one kind."""
        return self._run(self._calls.embed_or_words(texts, options, priority, deadline_s))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        model: str | None = None,
        priority: Priority | None = None,
        deadline_s: float | None = None,
    ) -> Ranking:
        """Documents in order for a query: by meaning, or by words where `degraded` says why."""
        return self._run(self._calls.rank(query, documents, top_k, model, priority, deadline_s))

    def search(
        self,
        collection: str,
        query: str,
        *,
        top_k: int = 10,
        mode: str = "auto",
        where: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> SearchResults:
        """The best documents of a collection. mode: auto, dense, bm25, hybrid; where: a filter."""
        return self._run(self._calls.search(collection, query, top_k, mode, where, deadline_s))

    def health(self, *, deadline_s: float | None = None) -> Any:
        """State of server, models and memory, as GET /health has it."""
        return self.request("GET", "/health", deadline_s=deadline_s)

    def request(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        lines: bytes | None = None,
        parameters: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> Any:
        """The JSON that any route answers. content: sent as JSON; lines: documents, one a line.

        A POST whose answer was lost is not sent again, but for lines.
        """
        steps = self._calls.request(method, path, content, lines, parameters or {}, deadline_s)
        return self._run(steps)

    def events(self, path: str) -> Iterator[Any]:
        """The JSON of a route's server-sent events, until the server ends them; asked for once."""
        url = self._calls.address(path)
        timeout = timeout_of(inf)
        with (
            told(self._calls.url),
            self._http.stream("GET", url, headers=self._headers, timeout=timeout) as response,
        ):
            if response.status_code != httpx.codes.OK:
                content_of(Answer(response.status_code, response.headers, response.read()))
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield orjson.loads(line.removeprefix("data: "))

    def close(self) -> None:
        """End the connections."""
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    done = self._do(step)
                except NoAnswerError as lost:
                    step = steps.throw(lost)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            found: T = end.value
            return found

    def _do(self, step: Ask | Pause) -> Answer | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        ends_at_s = time.monotonic() + step.timeout_s
        with (
            told(self._calls.url),
            self._http.stream(**sent_by(step, self._calls, self._headers)) as response,
        ):
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if time.monotonic() > ends_at_s:
                    raise httpx.ReadTimeout("its answer has not come whole in time")
        return Answer(response.status_code, response.headers, bytes(content))
