"""A request's body on its way in: admitted before it is read, counted as it streams in, timed.

A compressed body is decoded on its way, and counts by what it becomes. After the body a client has
nothing more to say but that it hangs up, which ends the work for it.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from plimsoll.api.edge.content_encoding import BodyDecoder, decoder_of
from plimsoll.errors import BodyTooLargeError, PlimsollError, SlowBodyError
from plimsoll.policy.priority import Priority
from plimsoll.serving.gate import RequestPermit

T = TypeVar("T")

GATE_FROM_BYTES = 64 << 10  # a smaller body is not worth asking for
GROW_BYTES = 256 << 10  # steps of a body that does not say its length
DISCARD_S = 5.0


def permit_of(request: Request) -> RequestPermit:
    """What a request reserves, until its reply has been sent."""
    permit: RequestPermit = request.state.permit
    return permit


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be, and how long it may take to arrive whole."""

    limit_bytes: int
    timeout_s: float


class IncomingBody:
    """The body of one request, which holds memory of the request's permit as it comes in."""

    def __init__(
        self, scope: Scope, receive: Receive, permit: RequestPermit, limits: BodyLimits
    ) -> None:
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        headers = dict(self._headers)
        length = headers.get(b"content-length", b"0")
        self._receive = receive
        self._permit = permit
        self._limits = limits
        self._declared_bytes = int(length) if length.isdigit() else 0
        self._waits_for_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self._clock = asyncio.get_running_loop().time
        self._deadline_s = self._clock() + limits.timeout_s
        # A body that is asked for at all is large, and so is what it says, unless told otherwise.
        self._priority = (
            Priority.INTERACTIVE
            if headers.get(b"x-priority") == Priority.INTERACTIVE.value.encode()
            else Priority.BULK
        )
        self._may_come = self._declared_bytes > 0 or b"transfer-encoding" in headers
        self._has_entered = False
        self._received_bytes = 0
        self._whole = False
        self._decoder: BodyDecoder | None = None
        self._decoded_bytes = 0
        self._given_whole = False  # the application has all of it
        self._gone: asyncio.Future[Message] | None = None  # what comes once the client hangs up
        self._in_parts = False
        self.refused = False

    def read_in_parts(self) -> None:
        """The route uses up the body as it comes, of any length, and reserves what it keeps of it.

        Each part then has as long to come as a whole body has.
        """
        self._in_parts = True

    async def receive(self) -> Message:
        """The next message to the application.

        Raises TooLargeError, SlowBodyError, OverloadError where there is no room for it, and
        RequestError where it cannot be decoded.
        """
        if self._given_whole:  # what comes now is that the client has gone
            return await self._receive()
        try:
            if not self._received_bytes:
                self._decoder = decoder_of(self._headers)
            is_first = not self._received_bytes and not self._in_parts
            if self._declared_bytes >= GATE_FROM_BYTES and is_first:
                self._check(self._declared_bytes)
                # Until then the client is held back by its own unread bytes, which takes its time.
                began_s = self._clock()
                await self._permit.wait_to_keep(self._declared_bytes)
                self._deadline_s += self._clock() - began_s
            self._admit(max(self._declared_bytes, self._n_bytes))
            decoder = self._decoder
            message = await (self._decoded(decoder) if decoder else self._next_in_time())
            self._admit(self._n_bytes)
            self._given_whole = not message.get("more_body", False)
        except PlimsollError:
            self.refused = True
            raise
        return message

    @property
    def _n_bytes(self) -> int:
        """What counts of the body so far: what it came as or what it became."""
        return max(self._received_bytes, self._decoded_bytes)

    async def _decoded(self, decoder: BodyDecoder) -> Message:
        """The next piece of a compressed body."""
        await asyncio.sleep(0)  # a small body may become many pieces, between which others run
        while not (piece := decoder.take()) and not self._whole:
            message = await self._next_in_time()
            if message["type"] != "http.request":
                return message
            self._admit(self._n_bytes)  # also where it decodes to nothing
            decoder.feed(message.get("body", b""))
        if not piece:
            decoder.finish()
        self._decoded_bytes += len(piece)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, whose body has been read, and cancel it when the client hangs up.

        Raises ClientDisconnect where it does: there is no client left to answer. The work stays in
        this task, and the watch goes on beside the answer, to its end in `close`: both would be
        turns of the event loop more before every answer.
        """
        serving, gone = asyncio.current_task(), asyncio.ensure_future(self.receive())
        self._gone = gone
        has_ended = has_hung_up = False

        def hang_up(_: object) -> None:
            nonlocal has_hung_up
            if serving is not None and not has_ended:
                has_hung_up = serving.cancel()

        gone.add_done_callback(hang_up)
        try:
            return await work
        except asyncio.CancelledError:
            # Where it was cancelled besides, that goes first.
            if serving is None or not has_hung_up or serving.uncancel():
                raise
            raise ClientDisconnect from None
        finally:
            has_ended = True

    async def close(self) -> None:
        """End the watch for a client that hangs up."""
        if self._gone is not None:
            self._gone.cancel()
            await asyncio.wait((self._gone,))

    def refuse(self) -> None:
        """Have what the client still sends dropped: its request is answered without it."""
        self.refused = self._may_come and not self._whole

    async def discard(self) -> None:
        """Read on until the client has sent everything or sees that it need not."""
        if self._waits_for_continue and not self._received_bytes:
            return  # it asked first, and has its answer
        most_bytes = self._received_bytes + self._limits.limit_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while not self._whole and self._received_bytes < most_bytes:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        return message

    async def _next_in_time(self) -> Message:
        if self._in_parts:
            self._deadline_s = self._clock() + self._limits.timeout_s
        try:
            async with asyncio.timeout_at(self._deadline_s):
                return await self._next()
        except TimeoutError:
            raise SlowBodyError(
                f"after {self._limits.timeout_s:g} s (PLIMSOLL_BODY_TIMEOUT_S) only "
                f"{self._received_bytes} bytes of the body had arrived; send fewer texts at a time"
            ) from None

    def _check(self, n_bytes: int) -> None:
        """Refuse what is over the limit, or what is part of a request that would wait too long."""
        if n_bytes > self._limits.limit_bytes:
            raise BodyTooLargeError(
                f"the body is larger than {self._limits.limit_bytes >> 20} MiB "
                "(PLIMSOLL_BODY_LIMIT); send fewer texts at a time"
            )
        if n_bytes >= GATE_FROM_BYTES and not self._has_entered:
            self._permit.enter(
                asks_breaker=False, priority=self._priority, size=self._declared_bytes
            )
            self._has_entered = True

    def _admit(self, n_bytes: int) -> None:
        if self._in_parts:
            return
        self._check(n_bytes)
        if n_bytes < GATE_FROM_BYTES or n_bytes <= self._permit.kept_bytes:
            return
        if n_bytes > self._declared_bytes:
            n_bytes = min(-(-n_bytes // GROW_BYTES) * GROW_BYTES, self._limits.limit_bytes)
        self._permit.keep(n_bytes)
