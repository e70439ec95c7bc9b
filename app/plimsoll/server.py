"""The server: start it, stop it."""

import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from plimsoll.api.edge.origins import is_loopback
from plimsoll.composition.application import create_app
from plimsoll.composition.models import check_places
from plimsoll.errors import SettingsError
from plimsoll.serving.core import Drain
from plimsoll.settings import Settings, local_url

log = logging.getLogger("plimsoll")

SHUTDOWN_TIMEOUT_S = 30
STARTUP_FAILURE = 3  # exit code, as of uvicorn itself
ANY_ADDRESS = "::"
# Every client must take it at any time (RFC 9110, 15.2).
INTERIM_ANSWER = b"HTTP/1.1 100 Continue\r\n\r\n"
GONE_CHECK_S = 0.2


class _HTTP(H11Protocol):
    """HTTP/1.1 by h11, which takes no upgrade and answers such a request as any other.

    httptools, which uvicorn would take where it is installed, drops the body of a request that
    asks for one, and Java's client asks for HTTP/2 in each.

    A client that shuts its sending side after its request still gets its answer. One that hung up
    sends the same, so it is asked: what is sent to a closed socket comes back as a reset.
    """

    _asks_whether_gone = False

    def _should_upgrade(self) -> bool:
        return False  # uvicorn's own is that too, with two warnings a request

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """True: keep the connection until the request under way has its answer."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete:
            return None
        if cycle.scope["http_version"] != "1.1":  # an interim answer is not for it
            return None
        cycle.keep_alive = False  # closes after the answer
        if not cycle.response_started and not self._asks_whether_gone:
            self._asks_whether_gone = True
            self.transport.write(INTERIM_ANSWER)
            self.loop.call_later(GONE_CHECK_S, self._end_if_gone)
        return True

    def _end_if_gone(self) -> None:
        if self.transport.is_closing():
            return
        # Nothing is read any more, so that the loop does not see the reset by itself.
        connection = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(GONE_CHECK_S, self._end_if_gone)


class _Server(uvicorn.Server):
    """uvicorn's server that says it is draining before it stops taking requests.

    welcome: told the server's address once it is served, to say what a person can do with it.
    """

    def __init__(
        self, config: uvicorn.Config, drain: Drain, welcome: Callable[[str], None] | None
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._welcome = welcome

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain for SIGHUP as for the others, but not where it is ignored, as under nohup."""
        with super().capture_signals():
            before = signal.getsignal(signal.SIGHUP)
            if before is not signal.SIG_IGN:
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            # What is written appears in one rename, so no file is left half made under its name.
            log.warning("stopped at once by a second SIGINT; requests under way are lost")
            logging.shutdown()
            os._exit(128 + sig)
        self._drain.started = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for given in sockets or []:  # uvicorn announces those alone that it has made
            log.info("Uvicorn running on %s (Press CTRL+C to quit)", _announced(given))
        if sockets and self._welcome is not None:
            self._welcome(local_url(*sockets[0].getsockname()[:2]))


def serve(settings: Settings, welcome: Callable[[str], None] | None = None) -> None:
    """Run the server until a signal ends it.

    welcome: told the address once it is served. Exits with STARTUP_FAILURE where it cannot listen.
    """
    workers = os.environ.get("WEB_CONCURRENCY", "1")
    if workers not in ("", "1"):
        raise SettingsError(
            f"WEB_CONCURRENCY is {workers}: two processes cannot own one memory budget. Plimsoll "
            "runs one process with as many engine threads as there are cores"
        )
    sockets = claim(settings)
    drain = Drain()
    config = http_config(create_app(settings, drain), settings)
    # uvicorn raises the signal again once it has shut down: by default the process would then
    # look killed instead of finished.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: sys.exit(0))
    _Server(config, drain, welcome).run(sockets)


def claim(settings: Settings) -> list[socket.socket]:
    """Listen, where these settings can be served at all; nothing is fetched or converted.

    Raises SettingsError, ModelNotFoundError and CacheErrors; exits as `listen` does.
    """
    check_reach(settings)
    sockets = listen(settings)
    try:
        check_places(settings)
    except BaseException:
        for taken in sockets:
            taken.close()
        raise
    return sockets


def check_reach(settings: Settings) -> None:
    """Raises SettingsError where strangers would be served and nothing says that it is meant."""
    if settings.api_keys or settings.allow_anonymous or is_loopback(settings.host):
        return
    raise SettingsError(
        f"PLIMSOLL_HOST is {settings.host} and there are no keys, so every client that reaches it "
        "would be served: set PLIMSOLL_API_KEYS, or PLIMSOLL_ALLOW_ANONYMOUS=true if that is meant"
    )


def http_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves `app`."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_HTTP,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        server_header=False,
    )


def listen(settings: Settings) -> list[socket.socket]:
    """Listen on every address that the host has, so that one who connects waits for the server.

    Says in one line why it cannot, and exits with STARTUP_FAILURE.
    """
    host, port = settings.host, settings.port
    try:
        sockets = _sockets(host, port)
    except OSError as error:
        remedy = "set PLIMSOLL_HOST, or --host, to an address of this machine"
        if error.errno == errno.EADDRINUSE:
            remedy = "stop what uses it, or choose another one with PLIMSOLL_PORT or --port"
        elif error.errno == errno.EACCES:
            remedy = "choose a port from 1024 on with PLIMSOLL_PORT or --port"
        # A name that is not known has no number of the system's; the rest is told twice.
        is_system = isinstance(error.errno, int) and error.errno > 0
        reason = os.strerror(error.errno or 0) if is_system else error.strerror
        log.error("cannot listen on port %d of %s: %s; %s", port, host, str(reason).lower(), remedy)
        sys.exit(STARTUP_FAILURE)
    for listening in sockets:
        # For every connection of it. asyncio does so only for sockets that it has made itself, and
        # a reply's body would wait 40 ms for the client to acknowledge its head.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sockets


def _sockets(host: str, port: int) -> list[socket.socket]:
    if host == ANY_ADDRESS:  # which asyncio would take for IPv6 alone
        return [socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, *_, address in found):
        try:
            sockets.append(socket.create_server(address, family=family))
        except OSError as error:
            # A host's name may stand for an IPv6 address too where the machine has no IPv6.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing = error
    if not sockets and missing is not None:
        raise missing
    return sockets


def _announced(given: socket.socket) -> str:
    host, port = given.getsockname()[:2]
    if host == ANY_ADDRESS:
        return f"http://[{host}]:{port}, IPv4 too"
    return f"http://[{host}]:{port}" if given.family == socket.AF_INET6 else f"http://{host}:{port}"
