"""Metrics of collections: documents that came and went, searches and how long they took."""

from typing import Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

SEARCH_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

DocumentOutcome: TypeAlias = Literal["added", "updated", "unchanged", "failed", "deleted"]
"""What became of a document that was sent, or was there."""

SearchMode: TypeAlias = Literal["dense", "bm25", "hybrid"]
"""How a search was answered."""


class CorpusMetrics:
    """Owns the metrics that collections record in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._documents = Counter(
            "plimsoll_documents",
            "Documents of collections, by outcome (added, updated, unchanged, failed, deleted)",
            ["outcome"],
            registry=registry,
        )
        self._search_seconds = Histogram(
            "plimsoll_search_seconds",
            "Time to answer a search, embedding included, by how it was answered (dense, bm25, "
            "hybrid)",
            ["mode"],
            buckets=SEARCH_BUCKETS_S,
            registry=registry,
        )
        self._part_searches = Counter(
            "plimsoll_progressive_searches",
            "Searches that read several versions of a collection that moves, by outcome (whole, "
            "left_out: a model did not answer, and others stood in)",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("whole", "left_out"):
            self._part_searches.labels(outcome)
        for outcome in get_args(DocumentOutcome):
            self._documents.labels(outcome)
        for mode in get_args(SearchMode):
            self._search_seconds.labels(mode)

    def documents(self, outcome: DocumentOutcome, n: int) -> None:
        """Count documents."""
        self._documents.labels(outcome).inc(n)

    def searched(self, mode: SearchMode, seconds: float) -> None:
        """A search has been answered."""
        self._search_seconds.labels(mode).observe(seconds)

    def searched_in_parts(self, *, is_whole: bool) -> None:
        """A search has read several versions, or those of them that could be."""
        self._part_searches.labels("whole" if is_whole else "left_out").inc()
