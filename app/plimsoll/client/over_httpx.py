"""What the two clients share of httpx: what is sent, how long it may take, what is raised."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isinf
from typing import Any

import httpx

from plimsoll.client.asking import Ask
from plimsoll.client.calls import Calls
from plimsoll.errors import InvalidRequestError, NoAnswerError

URL = "http://127.0.0.1:8080"
CONNECT_TIMEOUT_S = 10.0
HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # RFC 9110, token
# Nothing has reached the server, so that asking again cannot do a thing twice.
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def headers_of(key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """What goes along with every request.

    Raises InvalidRequestError for a key or a header that is none, without its value.
    """
    key = key.strip() if key else key  # of a file it ends with a line's end
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidRequestError("the key has characters that no key has", param="key")
    for name, value in (headers or {}).items():
        if not HEADER_NAME.fullmatch(name):
            raise InvalidRequestError(f"{name!r} is no name of a header", param="headers")
        if not (value.isascii() and value.isprintable()):
            raise InvalidRequestError(
                f"the header {name} has characters that no header has: printable ASCII alone",
                param="headers",
            )
    return dict(headers or {}) | ({"Authorization": f"Bearer {key}"} if key else {})


def sent_by(asked: Ask, calls: Calls, headers: Mapping[str, str]) -> dict[str, Any]:
    """What either of httpx's clients sends."""
    own = {"Content-Type": "application/json"} if asked.content else {}
    return {
        "method": asked.method,
        "url": calls.address(asked.path),
        "content": asked.content,
        "params": asked.parameters or None,
        "headers": own | dict(headers) | dict(asked.headers),
        "timeout": timeout_of(asked.timeout_s),
    }


def timeout_of(seconds: float) -> httpx.Timeout:
    """A model may have to be opened before the first byte comes, so only connecting is short."""
    whole = None if isinf(seconds) else seconds
    return httpx.Timeout(whole, connect=min(seconds, CONNECT_TIMEOUT_S))


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turn what httpx and the event loop's clock raise into NoAnswerError."""
    try:
        yield
    except (httpx.HTTPError, TimeoutError) as error:
        # What is wrong with a header that was given is told with that header, which may be a key.
        is_own = isinstance(error, httpx.LocalProtocolError)
        why = "a header cannot be sent" if is_own else str(error) or "it has not answered in time"
        raise NoAnswerError(
            f"the server at {url} does not answer: {why}; start it with `plimsoll serve`, or give "
            "the address of one that runs",
            sent=not isinstance(error, NOT_SENT),
        ) from error
