"""HTTP/1.1 over one connection: uvicorn's protocol over h11, with limits on what a client takes.

uvicorn limits a header's size in part, its time not at all, and answers whatever is wrong alike.
Here a header has a size and a time, an answer has to be taken, and what is refused before it is a
request gets a status that fits and some time to read it.
"""

import asyncio
import socket
from http import HTTPStatus
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from plimsoll.errors import (
    HeaderTooLargeError,
    MalformedRequestError,
    PlimsollError,
    SlowHeaderError,
)
from plimsoll.server.connections import Connections
from plimsoll.telemetry.connections import SILENT, SLOW_READER

# Every client must take it at any time (RFC 9110, 15.2).
INTERIM_ANSWER = b"HTTP/1.1 100 Continue\r\n\r\n"
GONE_CHECK_S = 0.2
# For what a refused client still sends: one that writes into a closed connection sees a reset
# instead of its answer.
LINGER_S = 1.0
LINGER_BYTES = 1 << 20
# How a TLS client begins: a handshake record of SSL 3 or TLS 1 (RFC 8446, 5.1).
TLS_HANDSHAKE = b"\x16\x03"
TLS_WORDS = (
    "the client speaks TLS, and this port plain HTTP: use http:// in its address, or put a proxy "
    "with TLS in front"
)
VERSIONS = (b"1.1", b"1.0")
# Beside a field's name and value: the colon, a space, the end of its line.
FIELD_BYTES = 4


class _Parser(h11.Connection):
    """h11's, which keeps what is wrong with a request for the protocol instead of raising it."""

    def __init__(self, header_bytes: int) -> None:
        super().__init__(h11.SERVER, header_bytes)
        self._header_bytes = header_bytes
        self.fault: PlimsollError | None = None

    def next_event(self) -> Any:
        """The next of h11's events; after a fault there is none."""
        if self.fault is not None:
            return h11.NEED_DATA
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            is_too_large = error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.fault = self._too_large() if is_too_large else _malformed(str(error))
            return h11.NEED_DATA
        if isinstance(event, h11.Request):
            self.fault = self._fault_of(event)
            if self.fault is not None:
                return h11.NEED_DATA
        return event

    def _fault_of(self, request: h11.Request) -> PlimsollError | None:
        """What h11 does not look at: a version, and the size of a header that came at once."""
        if request.http_version not in VERSIONS:
            return _malformed(f"HTTP/{request.http_version.decode()} is not spoken here")
        return self._too_large() if _header_bytes(request) > self._header_bytes else None

    def _too_large(self) -> HeaderTooLargeError:
        return HeaderTooLargeError(
            f"the header is larger than {self._header_bytes >> 10} KiB (PLIMSOLL_HEADER_LIMIT)"
        )


class HTTPProtocol(H11Protocol):
    """One connection. Owns its timers; takes no upgrade, and answers such a request as any other.

    httptools, which uvicorn would take where it is installed, drops the body of a request that
    asks for one, and Java's client asks for HTTP/2 in each.

    A client that shuts its sending side after its request still gets its answer. One that hung up
    sends the same, so it is asked: what is sent to a closed socket comes back as a reset.
    """

    conn: _Parser

    def __init__(self, connections: Connections, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._owner = connections
        self._limits = connections.limits
        self.conn = _Parser(self._limits.header_bytes)
        self._address: str | None = None  # of the client
        self._is_counted = False
        self._is_refused = False  # what it still sends is dropped
        self._lingers = False
        self._dropped_bytes = 0
        self._has_sent = False
        self._asks_whether_gone = False
        self._request_timer: asyncio.TimerHandle | None = None
        self._reading_timer: asyncio.TimerHandle | None = None

    # --- its beginning and its end --------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Serve it, or refuse it where too many are open."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else None
        error = self._owner.enter(self._address)
        if error is not None:
            self._refuse(error)
            return
        self._is_counted = True
        self._time_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of it."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it behind a connection that was reset
        self._stop_timers()
        if self._is_counted:
            self._owner.leave(self._address)
        if self._lingers:
            self._owner.end_linger()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way on it, nor any part of one."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and not self._has_part_of_header

    def end(self, error: PlimsollError) -> None:
        """End it now: what is under way is answered with `error`, where it can be still."""
        if self.is_idle or self._is_refused:
            self.transport.close()
        elif not self.transport.is_closing():
            self._owner.note(error.code, str(error), self._address)
            self._answer(error)
            self.transport.close()

    # --- what comes -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        # Some clients put an empty line behind the body of the only request they make.
        if self._is_refused or self.conn.their_state is h11.MUST_CLOSE:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        if not self._has_sent and data.startswith(TLS_HANDSHAKE):
            self.conn.fault = MalformedRequestError(TLS_WORDS)
        self._has_sent = True
        super().data_received(data)

    def handle_events(self) -> None:
        """Serve the requests that are whole; refuse what is none, and what is too slow."""
        super().handle_events()
        if self.conn.fault is not None and not self._is_refused:
            self._refuse(self.conn.fault)
            return
        self._time_request()
        is_open = not self._is_refused and not self.transport.is_closing()
        if is_open and self.cycle is not None and self.is_idle:
            self._time_idleness()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """True: keep the connection until the request under way has its answer."""
        cycle = self.cycle
        if self._is_refused or cycle is None or cycle.more_body or cycle.response_complete:
            return None
        if cycle.scope["http_version"] != "1.1":  # an interim answer is not for it
            return None
        cycle.keep_alive = False  # closes after the answer
        if not cycle.response_started and not self._asks_whether_gone:
            self._asks_whether_gone = True
            self.transport.write(INTERIM_ANSWER)
            self.loop.call_later(GONE_CHECK_S, self._end_if_gone)
        return True

    def _should_upgrade(self) -> bool:
        return False  # uvicorn's own is that too, with two warnings a request

    def _end_if_gone(self) -> None:
        if self.transport.is_closing():
            return
        # Nothing is read any more, so that the loop does not see the reset by itself.
        connection = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(GONE_CHECK_S, self._end_if_gone)

    # --- how long it may take -------------------------------------------------------------------

    @property
    def _has_part_of_header(self) -> bool:
        return self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])

    @property
    def _has_unread_body(self) -> bool:
        """Whether the rest of a body still comes for which the answer did not wait."""
        is_answered = self.cycle is not None and self.cycle.response_complete
        return is_answered and self.conn.their_state is h11.SEND_BODY

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        self._time_request()
        self._time_reading()

    def _time_idleness(self) -> None:
        """See to it that a connection without a request ends.

        uvicorn does so with the answer, and lets it be when the rest of a body comes after that.
        """
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _time_request(self) -> None:
        """Time a header from its first byte, the first from the connection's start; and the rest
        of a body that no route reads.
        """
        if self._is_refused:
            return
        if self._has_part_of_header or self._has_unread_body or not self._has_sent:
            if self._request_timer is None:
                late_s = self._limits.header_s
                self._request_timer = self.loop.call_later(late_s, self._end_slow_request)
        elif self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _end_slow_request(self) -> None:
        words = (
            f"after {self._limits.header_s:g} s (PLIMSOLL_HEADER_TIMEOUT_S) the header had not "
            "arrived whole"
        )
        if self._has_part_of_header:
            self._refuse(SlowHeaderError(words))
            return
        if not self._has_sent:
            # A spare connection of a browser, as a rule, which would take an answer for its next.
            self._owner.note(SILENT, words, self._address)
        self.transport.close()  # of an unread body's client, which has its answer

    def pause_writing(self) -> None:
        """The client leaves its answer: see to it that it takes something of it."""
        super().pause_writing()
        self._time_reading()

    def resume_writing(self) -> None:
        """It has taken most of what was there; the rest of a whole answer it has to take too."""
        super().resume_writing()
        self._stop_reading_timer()
        if self.cycle is None or self.cycle.response_complete:
            self._time_reading()

    def _time_reading(self) -> None:
        self._stop_reading_timer()
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes:
            self._reading_timer = self.loop.call_later(
                self._limits.send_s, self._end_slow_reader, left_bytes
            )

    def _stop_reading_timer(self) -> None:
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None

    def _end_slow_reader(self, left_bytes: int) -> None:
        self._reading_timer = None
        if self.transport.get_write_buffer_size() < left_bytes:
            self._time_reading()
            return
        words = (
            f"it took nothing of its answer for {self._limits.send_s:g} s (PLIMSOLL_SEND_TIMEOUT_S)"
        )
        self._owner.note(SLOW_READER, words, self._address)
        self.transport.abort()

    def _stop_timers(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
        self._stop_reading_timer()

    # --- refusals -------------------------------------------------------------------------------

    def _refuse(self, error: PlimsollError) -> None:
        """Answer with `error`, and close once the client has had time to read that."""
        self._is_refused = True
        self._unset_keepalive_if_required()
        self._stop_timers()
        self._owner.note(error.code, str(error), self._address)
        if not self._owner.linger():
            self.transport.abort()
            return
        self._lingers = True
        self._answer(error)
        if self.transport.is_closing():
            return
        try:
            self.transport.write_eof()
        except OSError:  # the client has reset it since, and asyncio asks the socket at once
            self.transport.abort()
            return
        self.flow.resume_reading()  # to see the client close
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _answer(self, error: PlimsollError) -> None:
        """Write the answer to the request under way, or to what is none; its work is dropped."""
        cycle = self.cycle
        path, has_begun = "", False
        if cycle is not None and not cycle.response_complete:
            path, has_begun = cycle.scope["path"], cycle.response_started
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False  # it has an answer, behind which nothing goes
            cycle.message_event.set()
        if has_begun:  # half an answer cannot be mended
            self.transport.abort()
        else:
            answer = self._owner.answer(error, path)
            self.transport.write(_written(answer, self.server_state.default_headers))


def _header_bytes(request: h11.Request) -> int:
    fields = sum(len(name) + len(value) + FIELD_BYTES for name, value in request.headers)
    return len(request.method) + len(request.target) + fields


def _malformed(reason: str) -> MalformedRequestError:
    return MalformedRequestError(f"what came is no HTTP request: {reason}")


def _written(answer: Response, headers: list[tuple[bytes, bytes]]) -> bytes:
    """An answer as it goes over the connection, which closes after it."""
    status = HTTPStatus(answer.status_code)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode("ascii")]
    fields = [*headers, *answer.raw_headers, (b"connection", b"close")]
    lines += [name + b": " + value for name, value in fields]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])
