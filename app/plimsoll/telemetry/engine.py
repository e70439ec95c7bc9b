"""Metrics of the engine: the queue before it, its runs, and how much of the machine it may use."""

from enum import Enum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

RUN_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Source(Enum):
    """Where a text's vector comes from."""

    ENGINE = "engine"
    IN_FLIGHT = "in_flight"
    CACHE = "cache"


class EngineMetrics:
    """Owns the metrics that the executor records in, and the gauges of each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queue_tokens = Gauge(
            "plimsoll_queue_tokens", "Tokens waiting for the engine", registry=registry
        )
        self._run_tokens = Histogram(
            "plimsoll_run_tokens",
            "Tokens that the engine took at once",
            buckets=RUN_TOKENS,
            registry=registry,
        )
        self._throughput = Gauge(
            "plimsoll_throughput_tokens_per_second",
            "Tokens embedded in the last second",
            registry=registry,
        )
        self._parallelism = Gauge(
            "plimsoll_parallelism", "Sequences that run at once", registry=registry
        )
        self._engine_threads = Gauge(
            "plimsoll_engine_threads", "Threads that the engine uses", registry=registry
        )

        self._vectors = Counter(
            "plimsoll_vectors",
            "Texts by where their vector came from: a run of the engine; the same text, with the "
            "same model, dimensions, prefix and class, that was waiting or being computed and had "
            "not ended (in_flight); or the vector cache",
            ["source"],
            registry=registry,
        )
        self._by_source = {source: self._vectors.labels(source.value) for source in Source}

        self._cache_bytes = Gauge(
            "plimsoll_vector_cache_bytes", "Memory that the vector cache takes", registry=registry
        )

    def cached(self, n_bytes: int) -> None:
        """The vector cache takes so much."""
        self._cache_bytes.set(n_bytes)

    def found(self, source: Source, n_texts: int = 1) -> None:
        """So many texts have their vectors from there, or will have."""
        self._by_source[source].inc(n_texts)

    def queued(self, n_tokens: int) -> None:
        """A text begins to wait."""
        self._queue_tokens.inc(n_tokens)

    def left_queue(self, n_tokens: int) -> None:
        """A text waits no longer: it runs, or is dropped."""
        self._queue_tokens.dec(n_tokens)

    def took(self, n_tokens: int) -> None:
        """A run begins."""
        self._run_tokens.observe(n_tokens)

    def show(self, *, tokens_per_s: float, parallelism: int, engine_threads: int) -> None:
        """Set what was found."""
        self._throughput.set(tokens_per_s)
        self._parallelism.set(parallelism)
        self._engine_threads.set(engine_threads)
