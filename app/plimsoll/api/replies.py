"""Render answers: JSON for the client, and what they were for log, metrics and traces.

Rendering of large replies leaves the event loop. What a reply takes in memory was reserved when the
request was admitted, and stays so until the reply has been sent.
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson
from fastapi import Request, Response

from plimsoll.api.edge.json_rendering import LongList, render_json
from plimsoll.corpora.listing import DocumentPage
from plimsoll.corpora.tasks import DegradedSearch, IngestResult, SearchResults
from plimsoll.serving.tasks import Degraded, Embeddings, Ranking, SparseEmbeddings
from plimsoll.serving.threads import run_in

# From so many numbers on, a reply is rendered in the thread. Measured: 170 vectors of 768 take 4 ms
# in line. A thread keeps the interpreter's lock for 5 ms (sys.getswitchinterval) though the loop
# waits for it, so a smaller reply would stop the loop as long, and the hop of 0.1 ms comes on top.
# 4,000 vectors stop the loop for 90 ms in line; from the thread for 5 to 10 ms at a time.
THREAD_FROM_NUMBERS = 128 << 10
# Names, brackets and the record around an item cost as much as so many of its numbers.
NUMBERS_AN_ITEM = 20
# Text is quoted as fast as numbers of so many characters are written.
NUMBER_CHARACTERS = 32
DEGRADED = "X-Plimsoll-Degraded"
FINGERPRINT = "X-Plimsoll-Fingerprint"
TRUNCATED = "X-Plimsoll-Truncated"
# For the `responses` of dialects whose body has no place for these.
VECTOR_HEADERS: dict[str, dict[str, Any]] = {
    FINGERPRINT: {
        "description": "Names the vector space: compare vectors only where it is equal.",
        "required": True,
        "schema": {"type": "string"},
    },
    TRUNCATED: {
        "description": "How many texts were cut to the token limit; missing where none was.",
        "schema": {"type": "integer", "minimum": 1},
    },
}
# For a route's `responses`.
DEGRADED_HEADERS = {
    DEGRADED: {
        "description": "Why this is not the primary answer; missing where it is.",
        "schema": {"type": "string"},
    }
}


def json_response(
    content: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """JSON of plain values and float32 arrays, each number as short as float32 allows."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, "application/json")


async def embeddings_response(
    request: Request,
    result: Embeddings,
    content: Callable[[], object],
    headers: dict[str, str] | None = None,
) -> Response:
    """Render an answer made of vectors, noting for log line and metrics what it was."""
    n_texts = len(result.vectors)
    _note(request, "dense", n_texts, result.n_tokens)
    n_numbers = sum(vector.size for vector in result.vectors if vector is not None)
    return await _rendered(request, content, headers, n_texts, n_numbers)


async def sparse_response(
    request: Request,
    result: SparseEmbeddings,
    content: Callable[[], object],
    headers: dict[str, str] | None = None,
) -> Response:
    """Render sparse vectors, likewise; a header says where they are not what was asked for."""
    n_texts = len(result.vectors)
    _note(request, "sparse", n_texts, None, result.degraded)
    n_numbers = 2 * sum(len(vector.indices) for vector in result.vectors)
    headers = {**(headers or {}), **_degraded_header(result.degraded)}
    return await _rendered(request, content, headers, n_texts, n_numbers)


async def ranking_response(
    request: Request,
    result: Ranking,
    content: Callable[[], object],
    headers: dict[str, str] | None = None,
) -> Response:
    """Render an order of documents, likewise."""
    kind = "dense" if result.kind == "dense" else "sparse"
    n_results = len(result.results)
    _note(request, kind, n_results, result.n_tokens, result.degraded)
    headers = {**(headers or {}), **_degraded_header(result.degraded)}
    return await _rendered(request, content, headers, n_results, n_results)


async def similarities_response(
    request: Request, scores: Sequence[float], n_tokens: int, headers: dict[str, str]
) -> Response:
    """Render likenesses to one text, likewise."""
    _note(request, "dense", len(scores), n_tokens)
    return await _rendered(request, lambda: LongList(scores), headers, 0, len(scores))


async def tokens_response(
    request: Request, n_texts: int, n_tokens: int, content: Callable[[], object]
) -> Response:
    """Render tokens with their places, likewise."""
    _note(request, "none", n_texts, n_tokens)
    return await _rendered(request, content, None, n_tokens, 0)


async def search_response(
    request: Request, result: SearchResults, content: Callable[[], object]
) -> Response:
    """Render what a search has found, likewise."""
    kind = "sparse" if result.mode == "bm25" else "dense"
    n_results = len(result.results)
    _note(request, kind, n_results, result.n_tokens, result.degraded)
    headers = _degraded_header(result.degraded)
    found = (found.document for found in result.results)
    n_characters = sum(len(document.text) + len(document.metadata_json) for document in found)
    return await _rendered(request, content, headers, n_results, n_characters // NUMBER_CHARACTERS)


async def listing_response(
    request: Request, page: DocumentPage, content: Callable[[], object]
) -> Response:
    """Render a page of documents, likewise."""
    n_documents = len(page.documents)
    _note(request, "none", n_documents, None)
    n_characters = sum(len(each.text) + len(each.metadata_json) for each in page.documents)
    n_numbers = len(page.vectors) * page.version.space.dimensions
    n_numbers += n_characters // NUMBER_CHARACTERS
    return await _rendered(request, content, None, n_documents, n_numbers)


def documents_response(request: Request, result: IngestResult) -> Response:
    """Render what became of documents, likewise."""
    n_stored = result.added + result.updated + result.unchanged
    _note(request, "none", n_stored + result.failed, result.n_tokens)
    return json_response(result)


def vector_headers(result: Embeddings) -> dict[str, str]:
    """What VECTOR_HEADERS describe, of this answer."""
    headers = {FINGERPRINT: result.fingerprint}
    if result.truncated:
        headers[TRUNCATED] = str(len(result.truncated))
    return headers


def _note(
    request: Request,
    kind: str,
    n_texts: int,
    n_tokens: int | None,
    degraded: Degraded | DegradedSearch | None = None,
) -> None:
    """Tell the edge what the answer is."""
    state = request.state
    state.kind, state.texts, state.tokens = kind, n_texts, n_tokens
    state.degraded = degraded and degraded.reason


async def _rendered(
    request: Request,
    content: Callable[[], object],
    headers: dict[str, str] | None,
    n_items: int,
    n_numbers: int,
) -> Response:
    """Render what `content` makes, in the thread where it is large."""
    state = request.app.state
    is_large = n_items * NUMBERS_AN_ITEM + n_numbers >= THREAD_FROM_NUMBERS
    with state.telemetry.requests.stage("render"):
        thread = state.parsing if is_large else None
        body = await run_in(thread, lambda: render_json(content()))
    return Response(body, 200, headers, "application/json")


def _degraded_header(degraded: Degraded | DegradedSearch | None) -> dict[str, str]:
    return {} if degraded is None else {DEGRADED: degraded.reason}
