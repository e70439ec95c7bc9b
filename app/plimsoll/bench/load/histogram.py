"""Latencies counted in buckets, so that memory does not grow with the number of requests."""

import math
from collections import Counter
from dataclasses import dataclass

BUCKET_GROWTH = 1.01  # each bucket is 1 % wider than the one before
SHORTEST_S = 1e-5


@dataclass(frozen=True)
class Percentiles:
    """What a histogram says; None where nothing was measured."""

    n: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    max_s: float | None


class LatencyHistogram:
    """Percentiles are never understated and at most 1 % overstated; the maximum is exact."""

    def __init__(self) -> None:
        self.n = 0
        self.max_s = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, latency_s: float) -> None:
        """Count one latency."""
        self.n += 1
        self.max_s = max(self.max_s, latency_s)
        ratio = max(latency_s, SHORTEST_S) / SHORTEST_S
        self._buckets[math.ceil(math.log(ratio, BUCKET_GROWTH))] += 1

    def merge(self, other: "LatencyHistogram") -> None:
        """Count all that `other` has counted."""
        self.n += other.n
        self.max_s = max(self.max_s, other.max_s)
        self._buckets.update(other._buckets)

    def percentile(self, percent: float) -> float | None:
        """The latency that `percent` of all did not exceed (nearest rank); None without any."""
        rank = max(1, math.ceil(self.n * percent / 100))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(self.max_s, SHORTEST_S * BUCKET_GROWTH**bucket)
        return None

    def percentiles(self) -> Percentiles:
        """The figures of the table."""
        p50_s, p90_s, p99_s = (self.percentile(percent) for percent in (50, 90, 99))
        return Percentiles(self.n, p50_s, p90_s, p99_s, self.max_s if self.n else None)
