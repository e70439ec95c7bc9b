"""Ask a running server: JSON in, JSON out, and what it refuses as one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
import httpx
import orjson

from plimsoll.cli import FAILED

CONNECT_TIMEOUT_S = 10.0


class ServerRefusedError(click.ClickException):
    """What the server answered in place of what was asked for.

    status: None where it did not answer. retry_after_s: None where waiting is no use.
    """

    exit_code = FAILED

    def __init__(
        self, message: str, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class ServerClient:
    """Owns a connection to the server at `url`."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url
        # A question may open a model, embed a sample or scan all vectors first.
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self._client = httpx.Client(base_url=url, headers=dict(headers), timeout=timeout)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """Raises ServerRefusedError."""
        with self._told():
            return _content(self._client.get(path, params=parameters))

    def put(self, path: str, content: Mapping[str, Any]) -> Any:
        """Raises ServerRefusedError."""
        with self._told():
            return _content(self._client.put(path, json=content))

    def post_lines(self, path: str, lines: bytes, **parameters: Any) -> Any:
        """Send JSON lines. Raises ServerRefusedError."""
        headers = {"Content-Type": "application/x-ndjson"}
        with self._told():
            answer = self._client.post(path, content=lines, params=parameters, headers=headers)
            return _content(answer)

    def post(self, path: str, content: Mapping[str, Any]) -> Any:
        """Raises ServerRefusedError."""
        with self._told():
            return _content(self._client.post(path, json=content))

    def events(self, path: str) -> Iterator[Any]:
        """What the server-sent events of `path` hold. Raises ServerRefusedError."""
        with self._told(), self._client.stream("GET", path) as response:
            if response.is_error:
                response.read()
                _content(response)
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield orjson.loads(line.removeprefix("data: "))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ServerRefusedError(
                f"the server at {self._url} does not answer: {error}; start it with `plimsoll "
                "serve`, or give --url"
            ) from error


def _content(response: httpx.Response) -> Any:
    try:
        content = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        content = {}
    if response.is_error:
        told = content.get("error", {}) if isinstance(content, dict) else {}
        message = told.get("message", response.reason_phrase)
        seconds = response.headers.get("Retry-After")
        raise ServerRefusedError(
            f"the server refused ({response.status_code}): {message}",
            response.status_code,
            None if seconds is None else float(seconds),
        )
    return content
