"""One client of the server: sends a request at a time and reads the reply."""

from collections.abc import Mapping
from contextlib import aclosing
from types import TracebackType
from urllib.parse import urlsplit

import httpx

from plimsoll.bench.load import exchange
from plimsoll.bench.load.exchange import NoReplyError, Target, retry_after_of
from plimsoll.bench.load.replies import Answer, ReplyReader

PATH = "/embed"
BIG_BODY_BYTES = 1 << 20  # above, a server may refuse before it has read all
# Shorter than servers keep an idle connection: one that is just being closed would count as
# a failure.
KEEP_ALIVE_S = 2.0


class Client:
    """Owns a connection that is kept alive between requests."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """url: http://HOST:PORT, and a path before /embed if there is one."""
        parts = urlsplit(url)
        path = parts.path.rstrip("/") + PATH
        sent = {"Content-Type": "application/json", "Accept-Encoding": "identity", **headers}
        self._target = Target(parts.hostname or "", parts.port or 80, path, sent)
        self._url = httpx.URL(url).copy_with(path=path)
        self._headers = httpx.Headers(sent)
        # httpx's transport alone: its client's redirects, cookies and joined addresses would
        # take as long again.
        self._transport = httpx.AsyncHTTPTransport(
            verify=False,  # http alone; spares reading certificates
            trust_env=False,  # no proxy between load and server
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEP_ALIVE_S),
        )

    async def post(self, content: bytes) -> Answer:
        """Send a body to POST /embed. Raises NoReplyError."""
        if len(content) > BIG_BODY_BYTES:
            return await exchange.post(self._target, content)
        request = httpx.Request("POST", self._url, headers=self._headers, content=content)
        reader = ReplyReader()
        try:
            response = await self._transport.handle_async_request(request)
            async with aclosing(response):
                async for chunk in response.aiter_raw():
                    reader.feed(chunk)
        except httpx.ConnectError:
            raise NoReplyError("no connection") from None
        except httpx.HTTPError:
            raise NoReplyError("connection lost") from None
        retry_after_s = retry_after_of(response.headers.get("retry-after"))
        return Answer(response.status_code, retry_after_s, reader)

    async def hang_up(self, content: bytes) -> None:
        """Send a body and close the connection at once. Raises NoReplyError."""
        await exchange.hang_up(self._target, content)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transport.aclose()
