"""Metrics of connections: how many are open, and which were ended for what their client did."""

from prometheus_client import CollectorRegistry, Counter, Gauge

# Why a connection was ended, beside the codes of refusals.
SILENT = "silent"  # nothing came
SLOW_READER = "slow_reader"  # took nothing of its answer
# There from the start: a rate does not see the first event of a series that begins with it.
ENDS = (
    SILENT,
    SLOW_READER,
    "slow_header",
    "header_too_large",
    "malformed_request",
    "too_many_connections",
    "too_many_client_connections",
    "stopping",
)


class ConnectionMetrics:
    """Owns the metrics that the HTTP server records in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge("plimsoll_connections", "Connections that are open", registry=registry)
        self._ended = Counter(
            "plimsoll_connections_ended",
            "Connections that the server has ended before a request had its answer, by reason: an "
            "error code, silent (nothing came) or slow_reader (took nothing of its answer)",
            ["reason"],
            registry=registry,
        )
        for reason in ENDS:
            self._ended.labels(reason)

    def opened(self) -> None:
        """Count a connection that has come."""
        self._open.inc()

    def closed(self) -> None:
        """Count it no more."""
        self._open.dec()

    def ended(self, reason: str) -> None:
        """Count a connection that the server ends, for one of ENDS."""
        self._ended.labels(reason).inc()
