"""Every error Plimsoll raises on purpose.

One class per thing a caller can do something about; messages carry the numbers
needed to act. Status codes are the API layer's matter.

PlimsollError
├── GGUFError                 a model file that cannot be read
│   ├── GGUFTruncatedError      it ends before what it promises
│   ├── GGUFFormatError         a value in it is impossible or not supported by this reader
│   └── GGUFTypeError           a tensor type that is not expanded here
├── ModelError                a model that cannot be used
│   ├── ModelNotFoundError      unknown name, missing file, nothing to fetch it from
│   ├── ModelDownloadError      the network, the hub or a checksum failed
│   ├── ModelUnsupportedError   an architecture, tokenizer or tensor set that is not built
│   ├── ModelLoadError          the streaming load failed
│   ├── QuantizationError       int8 is not to be had here, or not near enough to float32
│   └── ModelLoadingError       it is still being fetched or converted; retry later
├── CacheError                the folder of Plimsoll's own files
│   ├── CacheCorruptError       a file there is not what was written
│   ├── CacheSpaceError         not enough room for what is to be written
│   ├── CacheUnsafeError        wrong owner, a symbolic link, memory-backed
│   └── PackingError            weights cannot be packed ahead here; they are packed at every call
├── StoreError                the file of collections cannot be used
├── OutsideError              what a collection is linked to, such as a table
│   ├── OutsideUnavailableError  it does not answer, or others hold it; retry later
│   └── OutsideMismatchError    it is not as the file of links says
├── HookError                 a hook that gives no answer: it does not start, or says what is none
├── RequestError              what a client sent cannot be answered as asked
│   ├── InvalidRequestError     shape, type or value of a field
│   ├── UnsupportedEncodingError  a body with an encoding that is not read here
│   ├── EmptyTextError          a text without a token
│   ├── TextTooLongError        over the token limit with truncation off
│   ├── TokenIdsError           token ids that are not the model's
│   ├── UnknownModelError       a model that this server does not serve
│   ├── UnknownCollectionError  a collection that is not there
│   ├── UnknownDocumentError    a document that is not in its collection
│   ├── CollectionConflictError  a collection that is there, of another model or space
│   ├── UnknownMigrationError   a migration that is not there
│   ├── MigrationStateError     what a migration's state does not allow
│   ├── UnknownLinkError        a link that the operator has not written down
│   ├── LinkStateError          what cannot be done with a link, or its collection, as it stands
│   ├── VerdictError            a cut-over that its verdict speaks against, and is not forced
│   ├── UnknownHookError        a hook that the operator has not configured
│   ├── HookStoppedError        a hook that stops a migration, or gives no answer
│   ├── SpaceMismatchError      vectors of two spaces that would have to be compared
│   ├── MediaTypeError          a request that may change something and is not sent as JSON
│   ├── MalformedRequestError   bytes that are no HTTP request
│   ├── HeaderTooLargeError     a header over the limit
│   ├── MissingKeyError         no key where one is needed
│   ├── InvalidKeyError         a key that is none of this server's
│   ├── AdminKeyError           a key of the role embed where admin is needed
│   ├── HostError               a name that this server is not known by
│   └── OriginError             a web page of another origin
├── EncodeError               the engine could not compute
│   ├── EncodeMemoryError       it found no memory, also for a single text
│   └── NonFiniteError          a vector with NaN or infinity, also when computed alone
├── OverloadError             refused to protect what is under way; retry later
│   ├── QueueFullError          more tokens wait than drain in good time
│   ├── MemoryPressureError     no room below the memory line within the wait
│   ├── BreakerOpenError        memory failed or ran high; only the fallback answers
│   ├── ConnectionLimitError    as many connections are open as may be
│   │   └── ClientConnectionLimitError  as many of one client
│   ├── StoppingError           the server ends before it could answer
│   ├── SearchStoppedError      a search that read its collection for too long
│   ├── IngestStoppedError      some documents of a list are stored; send all of them again
│   └── ClientLimitError        a client that takes more than its share
│       ├── ConcurrencyLimitError  by requests under way
│       ├── RequestRateError       by requests a second
│       └── TokenRateError         by tokens a second
├── TooLargeError             could never fit this budget, however long one waits
│   └── BodyTooLargeError       a body over the limit of this route
├── SlowHeaderError           a header that arrives too slowly
├── SlowBodyError             a body that arrives too slowly
├── ServerError               a server that a client asks gives no answer
│   ├── RefusedError            it refuses the request, or one text of it
│   └── NoAnswerError           it is not reached, or what comes back is no answer of Plimsoll's
└── SettingsError             a setting that is unknown or out of bounds
"""

from typing import Any

# Characters of a refusal's message, and of what it quotes of its request.
MOST_MESSAGE, MOST_QUOTED = 2000, 200


def quoted(text: str) -> str:
    """What a client sent, in quotes, and of a long text the beginning."""
    return repr(text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}…")


def _shortened(message: str) -> str:
    if len(message) <= MOST_MESSAGE:
        return message
    half = MOST_MESSAGE // 2
    return f"{message[:half]} … {message[-half:]}"


class PlimsollError(Exception):
    """Base of every error raised on purpose.

    code: what clients branch by. retry_after_s: None where waiting would not help.
    """

    code = "internal_error"
    retry_after_s: float | None = None


class GGUFError(PlimsollError):
    """A GGUF file that cannot be read; `offset` is the byte where it went wrong."""

    code = "model_unavailable"

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset})")
        self.offset = offset


class GGUFTruncatedError(GGUFError):
    """The file ends before what its header promises."""


class GGUFFormatError(GGUFError):
    """A value in the file is impossible, or past what this reader accepts."""


class GGUFTypeError(GGUFError):
    """A tensor type that Plimsoll does not expand."""


class ModelError(PlimsollError):
    """A model that cannot be used."""

    code = "model_unavailable"


class ModelNotFoundError(ModelError):
    """Unknown name, missing file, or nothing to fetch it from."""


class ModelDownloadError(ModelError):
    """The network, the hub or a checksum failed."""


class ModelUnsupportedError(ModelError):
    """An architecture, tokenizer or tensor set that Plimsoll does not build."""


class ModelLoadError(ModelError):
    """The streaming load failed and left nothing behind."""


class QuantizationError(ModelError):
    """int8 is not to be had on this machine, or its vectors are not near enough to float32."""


class ModelLoadingError(ModelError):
    """The model is still being fetched or converted."""

    code = "model_loading"
    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CacheError(PlimsollError):
    """The folder of Plimsoll's own files."""

    code = "model_unavailable"


class CacheCorruptError(CacheError):
    """A cached file is not what was written."""


class CacheSpaceError(CacheError):
    """Not enough room for what is to be written."""


class PackingError(CacheError):
    """Weights cannot be packed into a file here; the engine packs them at every call instead."""


class CacheUnsafeError(CacheError):
    """Wrong owner or mode, a symbolic link, or a memory-backed file system."""


class StoreError(PlimsollError):
    """The file of collections cannot be read or written."""

    code = "store_unavailable"


class OutsideError(PlimsollError):
    """What a collection is linked to, such as a table of PostgreSQL."""

    code = "outside_unavailable"


class OutsideUnavailableError(OutsideError):
    """It does not answer, or others hold what is asked for."""

    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OutsideMismatchError(OutsideError):
    """It is not as the file of links says, or does not allow what is asked for."""

    code = "outside_mismatch"


class HookError(PlimsollError):
    """A hook gives no answer: it does not start, cannot look, or says what is no answer."""


class RequestError(PlimsollError):
    """What a client sent cannot be answered as asked; `param` names the field.

    The message may quote the client, but a refusal is not as large as what it refuses: of a longer
    one the middle is left out.
    """

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(_shortened(message))
        self.param = param if param is None else param[:MOST_QUOTED]


class InvalidRequestError(RequestError):
    """The shape, type or value of a field."""


class UnsupportedEncodingError(RequestError):
    """The body has an encoding that is not read here."""

    code = "unsupported_encoding"


class EmptyTextError(RequestError):
    """A text without a token."""

    code = "empty_text"


class TextTooLongError(RequestError):
    """A text over the token limit while truncation is off."""

    code = "too_long"


class TokenIdsError(RequestError):
    """Token ids that are not the model's, or that come where only texts are taken."""

    code = "token_ids"


class UnknownModelError(RequestError):
    """A model that this server does not serve."""

    code = "model_not_found"


class UnknownCollectionError(RequestError):
    """A collection that is not there."""

    code = "collection_not_found"


class UnknownDocumentError(RequestError):
    """A document that is not in its collection."""

    code = "document_not_found"


class CollectionConflictError(RequestError):
    """A collection that is there already, with vectors of another model or space."""

    code = "collection_conflict"


class UnknownMigrationError(RequestError):
    """A migration that is not there."""

    code = "migration_not_found"


class UnknownLinkError(RequestError):
    """A link that the operator has not written down."""

    code = "link_not_found"


class LinkStateError(RequestError):
    """What cannot be done with a link, or with its collection, as it stands."""

    code = "link_state"


class MigrationStateError(RequestError):
    """What a migration's state does not allow."""

    code = "migration_state"


class VerdictError(RequestError):
    """A cut-over that its verdict speaks against, and that is not forced."""

    code = "verdict_not_go"


class UnknownHookError(RequestError):
    """A hook that is neither built in nor in the operator's file."""

    code = "hook_not_found"


class HookStoppedError(RequestError):
    """A hook has stopped a migration's run or its cut-over, or gave no answer."""

    code = "hook_stopped"


class SpaceMismatchError(RequestError):
    """Vectors of two spaces that would have to be compared or stored side by side."""

    code = "space_mismatch"


class MediaTypeError(RequestError):
    """A request that may change something and is not sent as JSON."""

    code = "unsupported_media_type"


class MalformedRequestError(RequestError):
    """What came over the connection is no HTTP request."""

    code = "malformed_request"


class HeaderTooLargeError(RequestError):
    """A request line and header fields over the limit."""

    code = "header_too_large"


class MissingKeyError(RequestError):
    """No key where one is needed."""

    code = "missing_api_key"


class InvalidKeyError(RequestError):
    """A key that is none of this server's."""

    code = "invalid_api_key"


class AdminKeyError(RequestError):
    """A key of the role embed where admin is needed."""

    code = "admin_key_required"


class HostError(RequestError):
    """A name that this server is not known by."""

    code = "host_not_allowed"


class OriginError(RequestError):
    """A web page of another origin."""

    code = "origin_not_allowed"


class EncodeError(PlimsollError):
    """The engine could not compute."""


class NonFiniteError(EncodeError):
    """A vector holds NaN or infinity, also when computed alone."""


class EncodeMemoryError(EncodeError):
    """An allocation was refused; after a second there may be memory."""

    code = "out_of_memory"
    retry_after_s: float = 1.0


class OverloadError(PlimsollError):
    """Refused for now; `retry_after_s` says when it is worth trying again."""

    code = "overloaded"
    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(OverloadError):
    """More tokens wait than the engine drains in good time."""

    code = "queue_full"


class MemoryPressureError(OverloadError):
    """No room below the memory line within the queue's timeout."""

    code = "memory_pressure"


class BreakerOpenError(OverloadError):
    """The memory breaker is open."""

    code = "breaker_open"


class ConnectionLimitError(OverloadError):
    """As many connections are open as may be."""

    code = "too_many_connections"


class ClientConnectionLimitError(ConnectionLimitError):
    """As many connections of one client are open as may be."""

    code = "too_many_client_connections"


class StoppingError(OverloadError):
    """The server ends, and could not answer in time."""

    code = "stopping"


class SearchStoppedError(OverloadError):
    """A search that read its collection for too long, or until the server ended."""

    code = "search_stopped"


class IngestStoppedError(OverloadError):
    """Documents of a list are stored up to some point; sending all of them again is safe."""

    code = "documents_unfinished"


class ClientLimitError(OverloadError):
    """A client that takes more than its share."""


class ConcurrencyLimitError(ClientLimitError):
    """A client with as many requests under way as it may have."""

    code = "concurrency_limit"


class RequestRateError(ClientLimitError):
    """A client that has sent more requests a second than it may."""

    code = "request_rate"


class TokenRateError(ClientLimitError):
    """A client whose texts had more tokens a second than it may have."""

    code = "token_rate"


class TooLargeError(PlimsollError):
    """A request that could never fit this budget; the message has the largest that would."""

    code = "too_large_for_budget"


class BodyTooLargeError(TooLargeError):
    """A body over a limit that is not the budget's."""

    code = "body_too_large"


class SlowHeaderError(PlimsollError):
    """A header that did not arrive in time."""

    code = "slow_header"


class SlowBodyError(PlimsollError):
    """A body that did not arrive in time."""

    code = "slow_body"


class ServerError(PlimsollError):
    """A server that a client asks gives no answer.

    answered: plimsoll.client's Embeddings of the texts before the one that has none; else None.
    """

    answered: Any = None


class RefusedError(ServerError):
    """The server refuses the request, or one text of it.

    status: None where it refuses a text and has answered for others. code: as docs/api.md has it.
    param: the field that is at fault. retry_after_s: None where waiting would not help.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or "internal_error"
        self.param = param
        self.retry_after_s = retry_after_s


class NoAnswerError(ServerError):
    """The server is not reached, or what comes back is no answer of Plimsoll's.

    sent: whether the request may have reached it.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class SettingsError(PlimsollError):
    """A setting that is unknown or out of bounds."""
