"""Which refusals a request may end in, as the OpenAPI document shows them.

One example of each refusal, grouped by what it takes to meet it; status, code, shape and
`Retry-After` come from where the real ones get them. A test fails when a row of the table in
errors.py stands in no group.
"""

from itertools import groupby
from typing import Any, TypeAlias

from plimsoll import errors
from plimsoll.api.edge.errors import Refusal, lasting_message_of, refusal_of
from plimsoll.api.edge.guard import MISSING_KEY, NO_ADMIN_KEY, UNKNOWN_KEY
from plimsoll.api.edge.refusals import ErrorShape
from plimsoll.corpora.records import COLLECTION_NAME
from plimsoll.policy.return_times import LEAST_TOLD_S, MOST_TOLD_S

Examples: TypeAlias = tuple[Exception, ...]
Responses: TypeAlias = dict[int | str, dict[str, Any]]
"""What FastAPI takes for a route's `responses`."""

# What the server refuses before it knows a route, in Plimsoll's own shape, but for the last.
OF_A_CONNECTION: Examples = (
    errors.MalformedRequestError("what came is no HTTP request: illegal request line"),
    errors.SlowHeaderError(
        "after 10 s (PLIMSOLL_HEADER_TIMEOUT_S) the header had not arrived whole"
    ),
    errors.ClientConnectionLimitError(
        "this client has 512 connections open, which is the most (PLIMSOLL_CLIENT_CONNECTIONS): "
        "use them again, or close some",
        retry_after_s=5,
    ),
    errors.HeaderTooLargeError("the header is larger than 16 KiB (PLIMSOLL_HEADER_LIMIT)"),
    errors.ConnectionLimitError(
        "1024 connections are open, which is the most (PLIMSOLL_CONNECTIONS)", retry_after_s=5
    ),
    errors.StoppingError("the server ends now; send the request again", retry_after_s=5),
)

# Common to all routes: every `documented` has them.
OF_ANY_ROUTE: Examples = (RuntimeError(), *OF_A_CONNECTION)

# Of routes that ask for a key; those that are open to everyone have none of these.
OF_A_KEY: Examples = (
    errors.MissingKeyError(MISSING_KEY),
    errors.InvalidKeyError(UNKNOWN_KEY),
    errors.OriginError(
        "a page of 'https://example.com' may not call this server unless PLIMSOLL_CORS_ORIGINS "
        "names that origin"
    ),
    errors.HostError(
        "this server is not known as 'example.com': call it by its IP address, or let "
        "PLIMSOLL_ALLOWED_HOSTS name it"
    ),
)

# Of those of them that count against a client's limits.
OF_A_CLIENT: Examples = (
    *OF_A_KEY,
    errors.ConcurrencyLimitError(
        "this client may have 8 requests under way at once, and has as many", retry_after_s=1
    ),
    errors.RequestRateError(
        "this client may send 10 requests a second, and has sent more; it has to send fewer, or "
        "list more texts in each",
        retry_after_s=2,
    ),
    errors.TokenRateError(
        "this client may have 5000 tokens a second, and has had those of the next 12 s too",
        retry_after_s=12,
    ),
)

OF_AN_ADMIN_KEY: Examples = (
    *OF_A_KEY,
    errors.AdminKeyError(NO_ADMIN_KEY),
)

OF_AN_OPERATOR: Examples = (
    *OF_A_CLIENT,
    *OF_AN_ADMIN_KEY,
)

OF_A_QUEUE: Examples = (
    errors.TooLargeError(
        "this request takes 900 MiB at its peak and this server can never give more than 210 MiB; "
        "send fewer or shorter texts at a time, or raise its memory limit"
    ),
    errors.QueueFullError(
        "more texts wait before this request than run in good time", retry_after_s=20
    ),
    errors.MemoryPressureError(
        "this request takes 40 MiB at its peak and 12 MiB are free below the memory line",
        retry_after_s=3,
    ),
)

OF_ANY_BODY: Examples = (
    *OF_A_CLIENT,
    errors.InvalidRequestError("input: Field required", param="input"),
    errors.UnsupportedEncodingError(
        "a body with Content-Encoding: br is not read; send it as it is, or with gzip or deflate "
        "alone"
    ),
    errors.SlowBodyError(
        "after 30 s (PLIMSOLL_BODY_TIMEOUT_S) only 1200 bytes of the body had arrived; send fewer "
        "texts at a time"
    ),
    errors.BodyTooLargeError(
        "the body is larger than 20 MiB (PLIMSOLL_BODY_LIMIT); send fewer texts at a time"
    ),
    *OF_A_QUEUE,
)

OF_A_BODY: Examples = (
    *OF_ANY_BODY,
    errors.MediaTypeError(
        "send JSON with the header Content-Type: application/json, not "
        "'application/x-www-form-urlencoded' (curl: add -H 'Content-Type: application/json')"
    ),
)

OF_A_MODEL_NAME: Examples = (
    errors.UnknownModelError(
        "this server serves 'all-MiniLM-L6-v2', not 'other'; see GET /v1/models", param="model"
    ),
)

OF_THE_DEFAULT_MODEL: Examples = (
    errors.ModelLoadingError("all-MiniLM-L6-v2 is being made ready: 25 % done", retry_after_s=5),
    errors.ModelError("there is no file /models/nomic.gguf"),
    errors.BreakerOpenError("memory failed or ran high", retry_after_s=15),
    errors.EncodeMemoryError("the engine found no memory for a text of 256 tokens"),
)

OF_A_MODEL: Examples = (*OF_A_MODEL_NAME, *OF_THE_DEFAULT_MODEL)

OF_A_TEXT: Examples = (
    errors.EmptyTextError(
        "input[0]: the text has no tokens: it is empty, or only spaces or control characters",
        param="input",
    ),
    errors.TextTooLongError(
        "input[0]: the text has 300 tokens and the limit is 256; shorten it",
        param="input",
    ),
)

OF_TOKEN_IDS: Examples = (
    errors.TokenIdsError("50000 is no token of this model, which has 0 to 30521"),
)

OF_A_PATH: Examples = (
    errors.InvalidRequestError(
        f"name: String should match pattern '{COLLECTION_NAME}'", param="name"
    ),
)

OF_THE_STORE: Examples = (
    errors.StoreError(
        "the file of collections, /var/lib/plimsoll/collections.sqlite3: database or disk is full"
    ),
)

OF_A_COLLECTION: Examples = (
    *OF_THE_STORE,
    errors.UnknownCollectionError(
        "there is no collection 'ships'; see GET /collections", param="name"
    ),
)

OF_A_DOCUMENT: Examples = (
    *OF_A_COLLECTION,
    errors.UnknownDocumentError("'ships' has no document '7'", param="id"),
)

OF_A_CONFLICT: Examples = (
    errors.CollectionConflictError(
        "'ships' has vectors by 'all-MiniLM-L6-v2' with 384 values, which are kept", param="model"
    ),
)

OF_A_SPACE: Examples = (
    errors.SpaceMismatchError(
        "the vectors of 'ships' are of the space 'foreign:ada', into which no model here embeds a "
        "query; mode bm25 searches by words"
    ),
)

OF_A_SEARCH: Examples = (
    errors.SearchStoppedError(
        "the search read the collection for 10 s, which is the most; try again with fewer "
        "comparisons or words, or when the vectors have been read",
        retry_after_s=1,
    ),
)

OF_A_MIGRATION: Examples = (
    *OF_THE_STORE,
    errors.UnknownMigrationError("there is no migration 7; see GET /migrations", param="id"),
)

OF_A_STATE: Examples = (
    errors.MigrationStateError(
        "migration 7 is purged; what may follow is nothing, not rolled_back"
    ),
)

OF_A_MIRROR: Examples = (
    errors.LinkStateError(
        "'ships' mirrors what it is linked to: change that, or unlink it with `plimsoll links "
        "unlink ships`",
        param="name",
    ),
)

OF_A_LINK: Examples = (
    *OF_THE_STORE,
    *OF_A_MIRROR,
    errors.UnknownLinkError(
        "there is no link 'ship' in the file of PLIMSOLL_LINKS, which is read when the server "
        "starts; did you mean ships?",
        param="name",
    ),
)

OF_AN_OUTSIDE: Examples = (
    errors.OutsideMismatchError("the table public.ships has no column 'embedding'"),
    errors.OutsideUnavailableError(
        "the database db.example.org does not answer: connection refused", retry_after_s=5
    ),
)

OF_A_VERDICT: Examples = (
    errors.VerdictError(
        "the verdict of migration 7 is no_go: judged_queries: nDCG@10 0.0120, loses 0.3771 against "
        "0.3891 of the old version, on 113 queries; force it if that is meant"
    ),
)

OF_A_HOOK: Examples = (
    errors.UnknownHookError(
        "there is no hook 'tickets'; did you mean ticket? (`plimsoll hooks list` shows all)",
        param="hooks",
    ),
)

OF_A_CUTOVER: Examples = (
    *OF_A_VERDICT,
    errors.HookStoppedError("hook 'ticket' stopped it: no change window is open"),
)

OF_DOCUMENTS: Examples = (
    errors.IngestStoppedError(
        "512 documents were added, 0 updated, 0 were there and 0 failed before this: memory failed "
        "or ran high; send all of them again, what is stored is skipped",
        retry_after_s=15,
    ),
)

EVERYTHING = (
    OF_ANY_ROUTE,
    OF_AN_OPERATOR,
    OF_A_BODY,
    OF_A_MODEL,
    OF_A_TEXT,
    OF_TOKEN_IDS,
    OF_A_DOCUMENT,
    OF_A_CONFLICT,
    OF_A_SPACE,
    OF_A_SEARCH,
    OF_A_MIGRATION,
    OF_A_STATE,
    OF_A_LINK,
    OF_AN_OUTSIDE,
    OF_A_HOOK,
    OF_A_CUTOVER,
    OF_DOCUMENTS,
)


def documented(shape: ErrorShape, *groups: Examples) -> Responses:
    """The refusals of a route that may end as the examples in `groups` do, and as any route may."""
    found = (error for group in (OF_ANY_ROUTE, *groups) for error in group)
    examples = {error: shape.restate(_refusal(error)) for error in found}
    by_status = sorted(examples.items(), key=lambda pair: pair[1].status)
    return {
        status: _response(shape, list(same))
        for status, same in groupby(by_status, key=lambda pair: pair[1].status)
    }


def examples_of(shape: ErrorShape) -> dict[str, Any]:
    """Every refusal in one shape, by the names that `documented` refers to.

    They stand apart because FastAPI would leave out what is null in them.
    """
    refusals = {error: shape.restate(_refusal(error)) for group in EVERYTHING for error in group}
    return {
        _name(shape, refusal): {"summary": _meaning(error), "value": shape.render(refusal)}
        for error, refusal in refusals.items()
    }


def _refusal(error: Exception) -> Refusal:
    return refusal_of(error, {"type": "http"}, lambda: 0.5)


def _name(shape: ErrorShape, refusal: Refusal) -> str:
    return f"{shape.schema.__name__}.{refusal.code}"


def _response(shape: ErrorShape, examples: list[tuple[Exception, Refusal]]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": "\n".join(
            f"- `{refusal.code}`: {_meaning(error)}" for error, refusal in examples
        ),
        "model": shape.schema,
        "content": {
            "application/json": {
                "examples": {
                    refusal.code: {"$ref": f"#/components/examples/{_name(shape, refusal)}"}
                    for _, refusal in examples
                }
            }
        },
    }
    says_when = [refusal.retry_after_s is not None for _, refusal in examples]
    if any(says_when):
        response["headers"] = {"Retry-After": _retry_after(is_always_there=all(says_when))}
    return response


def _meaning(error: Exception) -> str:
    """The first line about an error's class; of an unforeseen one, what its client is told."""
    is_ours = isinstance(error, errors.PlimsollError)
    said = type(error).__doc__ if is_ours else None
    return said.splitlines()[0] if said else lasting_message_of(error)


def _retry_after(*, is_always_there: bool) -> dict[str, Any]:
    return {
        "description": "Whole seconds after which to try again; missing where that is no use.",
        "required": is_always_there,
        "schema": {"type": "integer", "minimum": LEAST_TOLD_S, "maximum": MOST_TOLD_S},
    }
