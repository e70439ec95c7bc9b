"""All connections of the server: how many may be open, and what is told of those that are ended.

Owns the counts. The protocol of each connection asks here before it serves, and tells here why it
ends one; the log has the first of each kind at once, and then a line every ten seconds at most.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from starlette.responses import Response

from plimsoll.api.edge.clients import client_of
from plimsoll.api.edge.refusals import Refusals
from plimsoll.errors import ClientConnectionLimitError, ConnectionLimitError, PlimsollError
from plimsoll.telemetry.connections import ConnectionMetrics

log = logging.getLogger("plimsoll")

# Refused connections that stay open for a moment, so that their clients can read why.
MOST_LINGERING = 64
LOG_PAUSE_S = 10.0
# When who is refused here, or ended with the server, should come again.
RETRY_S = 5.0


@dataclass(frozen=True)
class ConnectionLimits:
    """What a client may take before its request is there.

    header_bytes, header_s: of a request's line and header fields. send_s: in which it must take
    something of its answer. most, most_per_client: connections open at once.
    """

    header_bytes: int
    header_s: float
    send_s: float
    most: int
    most_per_client: int


class Connections:
    """Owns how many connections are open, and what was told of those that were ended."""

    def __init__(
        self,
        limits: ConnectionLimits,
        refusals: Refusals,
        metrics: ConnectionMetrics,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.limits = limits
        self._refusals = refusals
        self._metrics = metrics
        self._clock = clock
        self._n_open = 0
        self._n_lingering = 0
        self._by_client: Counter[str] = Counter()
        self._told_s: dict[str, float] = {}
        self._untold: Counter[str] = Counter()

    def enter(self, address: str | None) -> PlimsollError | None:
        """Count a connection; returns why it is not to be served, and then does not count it.

        address: of the client; None where it has none.
        """
        client = client_of(address)
        if self._n_open >= self.limits.most:
            return ConnectionLimitError(
                f"{self._n_open} connections are open, which is the most (PLIMSOLL_CONNECTIONS)",
                retry_after_s=RETRY_S,
            )
        if self._by_client[client] >= self.limits.most_per_client:
            return ClientConnectionLimitError(
                f"this client has {self._by_client[client]} connections open, which is the most "
                "(PLIMSOLL_CLIENT_CONNECTIONS): use them again, or close some",
                retry_after_s=RETRY_S,
            )
        self._n_open += 1
        self._by_client[client] += 1
        self._metrics.opened()
        return None

    def leave(self, address: str | None) -> None:
        """A connection that was counted has closed."""
        client = client_of(address)
        self._n_open -= 1
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]
        self._metrics.closed()

    def linger(self) -> bool:
        """Whether one more refused connection may stay open for a moment; `end_linger` ends it."""
        if self._n_lingering >= MOST_LINGERING:
            return False
        self._n_lingering += 1
        return True

    def end_linger(self) -> None:
        """It has closed."""
        self._n_lingering -= 1

    def answer(self, error: PlimsollError, path: str) -> Response:
        """What a client is told whose connection ends for `error`; path: "" where none is known."""
        return self._refusals.answer(error, {"type": "http", "path": path})

    def note(self, reason: str, words: str, address: str | None) -> None:
        """Count a connection that is ended, and say so in the log once in a while.

        reason: one of telemetry's ENDS.
        """
        self._metrics.ended(reason)
        now_s = self._clock()
        told_s = self._told_s.get(reason)
        if told_s is not None and now_s - told_s < LOG_PAUSE_S:
            self._untold[reason] += 1
            return
        self._told_s[reason] = now_s
        untold = self._untold.pop(reason, 0)
        more = f" ({untold} more of this kind since it was last said)" if untold else ""
        log.warning(
            "ended a connection from %s (%s): %s%s",
            address or "a local socket",
            reason,
            words,
            more,
        )
