"""The connection to a Qdrant server: made when it is needed, and every fault told as one of ours.

What the client's library says of an address is not passed on: it may hold a secret. The variable
that holds the address is named instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from json import JSONDecodeError, loads

import httpx
from pydantic import ValidationError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from plimsoll.errors import OutsideError, OutsideMismatchError, OutsideUnavailableError

TIMEOUT_S = 20
"""Of one request, after which a server that says nothing is given up."""

SHORT_TIMEOUT_S = 5
"""Likewise, where others wait meanwhile."""

RETRY_S = 5.0
MOST_MESSAGE_CHARACTERS = 300


class QdrantConnection:
    """Owns a client. url and api_key: secrets. variable: what the url is known by.

    is_short: others wait for what is asked.
    """

    def __init__(
        self, url: str, api_key: str | None, variable: str, *, is_short: bool = False
    ) -> None:
        self._url = url
        self._headers = {} if api_key is None else {"api-key": api_key}
        self._name = f"the Qdrant server of {variable}"
        self._timeout_s = SHORT_TIMEOUT_S if is_short else TIMEOUT_S
        self._client: QdrantClient | None = None

    @property
    def sends_key_in_the_clear(self) -> bool:
        """Whether a key goes over the network as it is."""
        return bool(self._headers) and self._url.startswith("http://")

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        """The client, for requests; what fails in the block is raised as an OutsideError."""
        try:
            yield self._open()
        except OutsideError:
            raise
        except ResourceExhaustedResponse as error:
            raise OutsideUnavailableError(
                f"{self._name} has too much to do", retry_after_s=float(error.retry_after_s)
            ) from None
        except UnexpectedResponse as error:
            raise self._refusal(error) from None
        except ResponseHandlingException as error:
            raise self._silence(error.source) from None
        except (httpx.HTTPError, httpx.InvalidURL, ValidationError) as error:
            raise self._silence(error) from None

    def close(self) -> None:
        """Let go of it; the next use opens another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> QdrantClient:
        if self._client is None:
            try:
                self._client = QdrantClient(
                    url=self._url,
                    # As a header: with `api_key` the library warns of plain HTTP at every start.
                    headers=self._headers,
                    timeout=self._timeout_s,
                    check_compatibility=False,  # it would ask, and warn
                )
            except ValueError:
                raise self._unreadable() from None  # whose message may quote the address
        return self._client

    def _unreadable(self) -> OutsideError:
        return OutsideMismatchError(
            f"{self._name}: its address cannot be read; write http://HOST:6333 or https://HOST"
        )

    def _refusal(self, error: UnexpectedResponse) -> OutsideError:
        """A status that means no. What the server itself says of it is passed on."""
        if error.status_code in (401, 403):
            return OutsideMismatchError(f"{self._name} refuses the key, or what it may do")
        told = f"{self._name} answers {error.status_code}: {_message(error.content)}"
        if error.status_code is None or error.status_code >= 500 or error.status_code == 408:
            return OutsideUnavailableError(told, retry_after_s=RETRY_S)
        return OutsideMismatchError(told)

    def _silence(self, source: object) -> OutsideError:
        """No answer, or none of a Qdrant server."""
        if isinstance(source, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return self._unreadable()
        if isinstance(source, httpx.TimeoutException):
            why = f"does not answer within {self._timeout_s} s"
        elif isinstance(source, httpx.ConnectError):
            why = "does not answer: no connection can be made"
        elif isinstance(source, httpx.TransportError):
            why = "does not answer: the connection was lost"
        else:
            why = "gives an answer that is none of Qdrant's: does the address lead elsewhere?"
        return OutsideUnavailableError(f"{self._name} {why}", retry_after_s=RETRY_S)


def _message(content: bytes) -> str:
    """What a refusal says: `{"status": {"error": …}}`, or the text of a proxy."""
    text = content.decode(errors="replace")
    with suppress(JSONDecodeError, KeyError, TypeError):
        text = str(loads(text)["status"]["error"])
    return text[:MOST_MESSAGE_CHARACTERS].strip() or "nothing else"
