"""What a simulation found: every request's end, every second's state, and sums over them. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import groupby
from typing import Any

from plimsoll.policy.breaker import BreakerState, Transition


class Fate(Enum):
    """What became of a request; each has exactly one."""

    DENSE = "dense"  # answered with the model's vectors
    SPARSE = "sparse"  # answered with the fallback's
    QUEUE_FULL = "queue_full"  # 429
    TOO_LARGE = "too_large"  # 413
    NO_ROOM = "no_room"  # 503: the fallback found no memory either
    UNFINISHED = "unfinished"  # the simulation ended before it did


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request and its end.

    n_attempts: how often its client sent it. reason: why the answer is not the model's own.
    wait_s: until its first text ran, if one did.
    answered_s: from its arrival to its end.
    """

    at_s: float
    n_texts: int
    n_tokens: int
    n_attempts: int
    fate: Fate
    reason: str | None
    wait_s: float | None
    answered_s: float


@dataclass(frozen=True, slots=True)
class Second:
    """A second of the simulation, up to `at_s`.

    used_bytes: the most within it. step: of the memory ladder, 0 to 4. n_waiting: requests that
    wait for room.
    """

    at_s: float
    used_bytes: int
    parallelism: int
    step: int
    breaker: BreakerState
    queue_tokens: int
    n_waiting: int


@dataclass(frozen=True)
class SimulationReport:
    """All of it, and what people ask for first.

    line_bytes: what admission defended at the start; extra memory and the fallback may pass it.
    """

    limit_bytes: int
    line_bytes: int
    peak_bytes: int
    requests: Sequence[RequestRecord]
    transitions: Sequence[Transition]
    seconds: Sequence[Second]

    def count(self, fate: Fate) -> int:
        """Requests that ended so."""
        return sum(request.fate is fate for request in self.requests)

    def count_by_attempts(self) -> dict[int, int]:
        """Requests with an answer, by how often their clients sent them."""
        answered = (r for r in self.requests if r.fate in (Fate.DENSE, Fate.SPARSE))
        return dict(sorted(Counter(request.n_attempts for request in answered).items()))

    def reasons(self, fate: Fate) -> dict[str, int]:
        """Requests that ended so, by the reason why the model did not answer."""
        found = (request.reason for request in self.requests if request.fate is fate)
        return dict(sorted(Counter(reason for reason in found if reason).items()))

    def wait_s(self, percent: float) -> float | None:
        """Percentile of the time until a request's first text ran; None where none ran."""
        return _percentile((request.wait_s for request in self.requests), percent)

    def answered_s(self, percent: float) -> float | None:
        """Percentile of the time to an answer of the model; None where there is none."""
        dense = (request for request in self.requests if request.fate is Fate.DENSE)
        return _percentile((request.answered_s for request in dense), percent)

    def parallelism(self) -> list[tuple[float, int]]:
        """Seconds at which the parallelism changed, and to what."""
        spans = groupby(self.seconds, key=lambda second: second.parallelism)
        return [(next(span).at_s, parallelism) for parallelism, span in spans]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "limit_bytes": self.limit_bytes,
            "line_bytes": self.line_bytes,
            "peak_bytes": self.peak_bytes,
            "counts": {fate.value: self.count(fate) for fate in Fate},
            "answered_by_attempts": self.count_by_attempts(),
            "sparse_reasons": self.reasons(Fate.SPARSE),
            "wait_s": {"p50": self.wait_s(50), "p99": self.wait_s(99)},
            "answered_s": {"p50": self.answered_s(50), "p99": self.answered_s(99)},
            "transitions": [_plain(transition) for transition in self.transitions],
            "seconds": [_plain(second) for second in self.seconds],
            "requests": [_plain(request) for request in self.requests],
        }


def _percentile(values: Iterable[float | None], percent: float) -> float | None:
    """The smallest value that so many percent do not pass."""
    known = sorted(value for value in values if value is not None)
    return known[max(0, math.ceil(percent / 100 * len(known)) - 1)] if known else None


def _plain(record: RequestRecord | Second | Transition) -> dict[str, Any]:
    fields = asdict(record)
    return {
        name: value.value if isinstance(value, Enum) else value for name, value in fields.items()
    }
