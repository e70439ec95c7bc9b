"""Ask a server, and ask again where it says when, or where the answer was lost.

No socket and no sleep: the generators yield an `Ask` or a `Pause`, and are sent the answer.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any, TypeVar, cast

import orjson

from plimsoll.errors import InvalidRequestError, NoAnswerError, RefusedError, ServerError

T = TypeVar("T")

DEADLINE_S = 300.0
FIRST_PAUSE_S = 0.5  # after a lost answer; each further one is twice as long
MOST_LOST = 5  # lost answers in a row: a server that restarts is back within the pauses between
GATEWAY_STATUS = (502, 503, 504)  # of what stands before a server that is away

OnWait = Callable[[ServerError, float], None]
"""Told why a call waits, and for how many seconds."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to send.

    is_repeatable: sending it twice does no more than sending it once.
    timeout_s: what is left of the call's time.
    """

    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_repeatable: bool = True
    timeout_s: float = inf


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds to wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whole."""

    status: int
    headers: Mapping[str, str]  # by names in lower case
    content: bytes


Steps = Generator[Ask | Pause, Answer | None, T]


class Patience:
    """Owns what is left of one call's time and tries."""

    def __init__(
        self,
        deadline_s: float,
        max_retries: int | None,
        on_wait: OnWait | None,
        clock: Callable[[], float],
    ) -> None:
        """The call begins now. max_retries: None for as many as the deadline has room for."""
        self._deadline_s = deadline_s
        self._clock = clock
        self._ends_at_s = clock() + deadline_s
        self._n_retries = inf if max_retries is None else max_retries
        self._on_wait = on_wait

    def left_s(self) -> float:
        """Seconds until the deadline. Raises NoAnswerError after it."""
        left_s = self._ends_at_s - self._clock()
        if left_s <= 0:
            raise NoAnswerError(f"the deadline of {self._deadline_s:g} s has passed", sent=False)
        return left_s

    def wait(self, error: ServerError, seconds: float) -> Pause:
        """The pause before the next try. Raises `error` where there is to be none."""
        if self._n_retries < 1 or seconds >= self._ends_at_s - self._clock():
            raise error
        self._n_retries -= 1
        if self._on_wait is not None:
            self._on_wait(error, seconds)
        return Pause(seconds)


def ask(request: Ask, patience: Patience) -> Steps[Any]:
    """The JSON of an answer, None where it has no content.

    Raises RefusedError, and NoAnswerError where none came that can be read.
    """
    n_lost = 0
    while True:
        try:
            answer = yield replace(request, timeout_s=patience.left_s())
            return content_of(cast(Answer, answer))
        except NoAnswerError as lost:
            n_lost += 1
            if n_lost == MOST_LOST or not (request.is_repeatable or not lost.sent):
                raise
            yield patience.wait(lost, FIRST_PAUSE_S * 2 ** (n_lost - 1))
        except RefusedError as refused:
            if refused.retry_after_s is None:
                raise
            n_lost = 0
            # Some say that it is now, which would be asking without an end.
            yield patience.wait(refused, max(FIRST_PAUSE_S, refused.retry_after_s))


def as_json(content: object, what: str) -> bytes:
    """Raises InvalidRequestError for what JSON cannot hold, such as half of a surrogate pair."""
    try:
        return orjson.dumps(content)
    except orjson.JSONEncodeError as error:
        raise InvalidRequestError(f"{what}: {error}", param=what) from error


def content_of(answer: Answer) -> Any:
    """The JSON of an answer. Raises RefusedError, and NoAnswerError for what is not JSON."""
    try:
        content = orjson.loads(answer.content) if answer.content else None
    except orjson.JSONDecodeError:
        content = None
        if answer.status < 300:
            raise NoAnswerError("what answers is no Plimsoll: it sends no JSON") from None
    if answer.status < 300:
        return content
    error = content.get("error") if isinstance(content, dict) else None
    told = error if isinstance(error, dict) else {}
    retry_after_s = _seconds(answer.headers.get("retry-after"))
    if not told and retry_after_s is None and answer.status in GATEWAY_STATUS:
        raise NoAnswerError(f"what stands before the server answers {answer.status}")
    message = told.get("message", "without a reason that could be read")
    raise RefusedError(
        f"the server refused ({answer.status}): {message}",
        status=answer.status,
        code=told.get("code"),
        param=told.get("param"),
        retry_after_s=retry_after_s,
    )


def _seconds(retry_after: str | None) -> float | None:
    """Of the header Retry-After, which may be a date too; None where it says nothing."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):  # the latter for a year that has too many digits
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
