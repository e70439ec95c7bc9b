"""Run the server from its start to its end, which signals ask for.

At the first signal it says that it is not ready, lets requests under way finish, and answers those
that come over connections that are open still; at the second it ends what is under way; at the
third it is gone at once.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from plimsoll.composition.application import create_app
from plimsoll.errors import SettingsError, StoppingError
from plimsoll.machine.descriptors import allow_descriptors
from plimsoll.server.connections import MOST_LINGERING, RETRY_S, ConnectionLimits, Connections
from plimsoll.server.folders import marked
from plimsoll.server.last_answers import LastAnswers
from plimsoll.server.listening import announced, claim, let_none_connect, own_url
from plimsoll.server.notify import ServiceManager
from plimsoll.server.protocol import HTTPProtocol
from plimsoll.serving.core import Drain
from plimsoll.settings import Settings

log = logging.getLogger("plimsoll")

# Beside connections: files of weights and collections, links, hooks.
OTHER_DESCRIPTORS = 256
LOOK_S = 0.05  # while connections close
# An open connection without a request: as long as a client that is about to send one may take.
IDLE_GRACE_S = 1.0
# What is ended has so long to let go of what it holds.
END_S = 2.0
# Beside the time for requests: stores, links and models are closed.
CLOSE_S = 30.0
MOST_WAITING = 4096  # connections that wait to be accepted


@dataclass(frozen=True)
class DrainTimes:
    """Seconds for which connections are still taken, and then for requests to finish."""

    delay_s: float
    finish_s: float


class PlimsollServer(uvicorn.Server):
    """uvicorn's server with an end of its own.

    Owns the drain and the signals that have come. welcome: told the server's address once it is
    served, to say what a person can do with it. keeps_listening: its sockets outlive it, and who
    connects waits for the next server.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        times: DrainTimes,
        manager: ServiceManager,
        welcome: Callable[[str], None] | None = None,
        *,
        keeps_listening: bool = False,
    ) -> None:
        super().__init__(config)
        self.signals: list[int] = []
        self._drain = drain
        self._times = times
        self._manager = manager
        self._welcome = welcome
        self._keeps_listening = keeps_listening
        self._alive: asyncio.Task[None] | None = None

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
        """Go one step further towards the end."""
        self.signals.append(sig)
        if len(self.signals) > 2:
            # What is written appears in one rename, so no file is left half made under its name.
            os._exit(128 + sig)
        self._drain.started = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and say where."""
        self._alive = asyncio.create_task(self._manager.keep_alive())
        await super().startup(sockets)
        places = [announced(given) for given in sockets or []]
        for place in places:  # uvicorn announces those alone that it has made
            log.info("Uvicorn running on %s (Press CTRL+C to quit)", place)
        self._manager.ready(", ".join(places))
        url = own_url(sockets[0]) if sockets else None
        if url is not None and self._welcome is not None:
            self._welcome(url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish, close every connection, and then all that the application owns."""
        log.info("Shutting down")
        times = self._times
        self._manager.stopping(times.delay_s + times.finish_s + END_S + CLOSE_S)
        await self._wait(times.delay_s, lambda: False)
        await self._stop_listening(sockets or [])
        await self._let_finish()
        await self._end_rest()
        await self.lifespan.shutdown()
        if self._alive is not None:
            self._alive.cancel()
            with suppress(asyncio.CancelledError):
                await self._alive

    @property
    def _is_hurried(self) -> bool:
        return len(self.signals) > 1

    async def _wait(self, seconds: float, is_done: Callable[[], bool]) -> None:
        """Wait until it is done, for so long at most, and not after a second signal."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        while not is_done() and not self._is_hurried and loop.time() < end_s:
            await asyncio.sleep(LOOK_S)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Take what waits to be accepted: the kernel has promised it, and would reset it."""
        loop = asyncio.get_running_loop()
        for listening in sockets:
            loop.remove_reader(listening.fileno())  # asyncio's own accepting
            if not self._keeps_listening:
                let_none_connect(listening)
        # What that has accepted gets its protocol, and who is about to connect gets through.
        await asyncio.sleep(LOOK_S)
        for listening in sockets:
            with suppress(OSError):  # no more waits
                for _ in range(MOST_WAITING):
                    taken, _address = listening.accept()
                    taken.setblocking(False)
                    await loop.connect_accepted_socket(self._new_protocol, taken)
        for server in self.servers:
            server.close()
        for listening in sockets:
            listening.close()

    def _new_protocol(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def _let_finish(self) -> None:
        """Wait for requests under way; close what has none, a moment later."""
        idle_from_s = asyncio.get_running_loop().time() + IDLE_GRACE_S

        def is_done() -> bool:
            if asyncio.get_running_loop().time() >= idle_from_s:
                for connection in self._connections:
                    if connection.is_idle:
                        connection.transport.close()
            return not self.server_state.connections and not self.server_state.tasks

        await self._wait(max(self._times.finish_s, IDLE_GRACE_S + LOOK_S), is_done)

    async def _end_rest(self) -> None:
        """Answer what has not finished, and have its work dropped."""
        self._drain.is_over = True
        busy = [connection for connection in self._connections if not connection.is_idle]
        if busy:
            why = (
                f"after a second signal, {signal.Signals(self.signals[1]).name}"
                if self._is_hurried
                else f"after {self._times.finish_s:g} s (PLIMSOLL_DRAIN_S)"
            )
            log.warning("%d requests are ended %s; clients are told so", len(busy), why)
        for connection in self._connections:
            connection.end(
                StoppingError("the server ends now; send the request again", retry_after_s=RETRY_S)
            )
        await self._await_tasks()  # each has been told that its client is gone
        for task in list(self.server_state.tasks):
            task.cancel()
        await self._await_tasks()

    async def _await_tasks(self) -> None:
        if tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=END_S)

    @property
    def _connections(self) -> list[HTTPProtocol]:
        found = list(self.server_state.connections)
        return [connection for connection in found if isinstance(connection, HTTPProtocol)]


def serve(settings: Settings, welcome: Callable[[str], None] | None = None) -> None:
    """Run the server until a signal ends it.

    welcome: told the address once it is served. Exits with STARTUP_FAILURE where it cannot listen,
    and with 128 and the signal's number where a second signal has ended requests.
    """
    workers = os.environ.get("WEB_CONCURRENCY", "1")
    if workers not in ("", "1"):
        raise SettingsError(
            f"WEB_CONCURRENCY is {workers}: two processes cannot own one memory budget. Plimsoll "
            "runs one process with as many engine threads as there are cores"
        )
    manager = ServiceManager.of(os.environ, os.getpid())
    sockets, are_given = claim(settings)
    # A signal that comes before the server or after it.
    _heed_signals(lambda *_: sys.exit(0))
    drain = Drain()
    app = create_app(settings, drain)
    connections = Connections(
        limits_of(settings, allow_descriptors(_descriptors(settings))),
        app.state.refusals,
        app.state.telemetry.connections,
    )
    config = http_config(LastAnswers(app, drain), settings, connections)
    times = DrainTimes(settings.drain_delay_s, settings.drain_s)
    server = PlimsollServer(config, drain, times, manager, welcome, keeps_listening=are_given)
    with marked(settings.cache_dir, settings.data_dir, announced(sockets[0])):
        server.run(sockets)
    code = 128 + server.signals[1] if len(server.signals) > 1 else 0
    _heed_signals(lambda *_: os._exit(code))  # all is closed
    if code:
        sys.exit(code)


def http_config(app: ASGIApp, settings: Settings, connections: Connections) -> uvicorn.Config:
    """How uvicorn serves `app`."""
    protocol: Any = partial(HTTPProtocol, connections)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_s,
        server_header=False,
        forwarded_allow_ips=settings.proxies,  # "none" is the address of none
    )


def limits_of(settings: Settings, n_descriptors: int) -> ConnectionLimits:
    """What clients may take; n_descriptors: that this process may have open."""
    most = min(settings.connections, max(1, n_descriptors - MOST_LINGERING - OTHER_DESCRIPTORS))
    if most < settings.connections:
        log.warning(
            "at most %d connections are taken, not %d (PLIMSOLL_CONNECTIONS): this process may "
            "have %d files open; raise its hard limit (ulimit -Hn, LimitNOFILE=)",
            most, settings.connections, n_descriptors,
        )  # fmt: skip
    return ConnectionLimits(
        header_bytes=settings.header_limit,
        header_s=settings.header_timeout_s,
        send_s=settings.send_timeout_s,
        most=most,
        most_per_client=min(most, settings.client_connections),
    )


def _descriptors(settings: Settings) -> int:
    return settings.connections + MOST_LINGERING + OTHER_DESCRIPTORS


def _heed_signals(handler: Callable[..., object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
