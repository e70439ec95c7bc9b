"""The application of a server that ends: its last answers say that the connection closes."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plimsoll.serving.core import Drain

CLOSE = (b"connection", b"close")


class LastAnswers:
    """ASGI middleware around everything else.

    A client that uses a connection again goes to another server, or comes again, before this one
    closes it under a request. What is cancelled at the very end fails in silence: its connection
    has been answered and closed.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_last(message: Message) -> None:
            if self._drain.started and message["type"] == "http.response.start":
                headers = message.get("headers", ())
                if CLOSE not in headers:
                    message = {**message, "headers": [*headers, CLOSE]}
            await send(message)

        try:
            await self._app(scope, receive, send_last)
        except asyncio.CancelledError:
            if not self._drain.is_over:
                raise
