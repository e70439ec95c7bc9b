"""What a run has found: frozen figures, for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from plimsoll.bench.load.histogram import Percentiles


@dataclass(frozen=True)
class Counts:
    """Requests of a kind, or of all, by what became of them.

    Latency counts from when a request was due. `latency` is that of dense and sparse replies,
    and of requests that timed out; `refusal_latency` that of refusals and rejections, which
    would make the first look better than it is.
    """

    sent: int
    dense: int
    sparse: int
    refused: int
    rejected: int
    failed: int
    hung_up: int
    tokens: int  # of dense replies
    causes: Mapping[str, int]  # of what was refused or failed
    latency: Percentiles
    refusal_latency: Percentiles

    @property
    def unfinished(self) -> int:
        """Requests that were under way when the run was interrupted."""
        return self.sent - self._due_vectors - self.rejected - self.hung_up

    @property
    def n_replies(self) -> int:
        """Requests that the server answered in any way that counts as its answer."""
        return self.dense + self.sparse + self.refused + self.rejected

    @property
    def failed_ratio(self) -> float | None:
        """Failed ones of those that were to be answered; None when there were none."""
        n_due = self._due_vectors + self.rejected
        return self.failed / n_due if n_due else None

    @property
    def dense_ratio(self) -> float | None:
        """Dense ones of those that were due vectors; None when there were none."""
        return self.dense / self._due_vectors if self._due_vectors else None

    @property
    def _due_vectors(self) -> int:
        return self.dense + self.sparse + self.refused + self.failed

    def as_dict(self) -> dict[str, Any]:
        """For JSON, ratios included."""
        ratios = {"failed_ratio": self.failed_ratio, "dense_ratio": self.dense_ratio}
        return asdict(self) | {"unfinished": self.unfinished} | ratios


@dataclass(frozen=True, slots=True)
class Second:
    """One second of the run: what was sent in it, and what ended in it."""

    second: int
    sent: int = 0
    dense: int = 0
    sparse: int = 0
    refused: int = 0
    rejected: int = 0
    failed: int = 0
    hung_up: int = 0
    tokens: int = 0
    p50_s: float | None = None
    p99_s: float | None = None


@dataclass(frozen=True)
class Verification:
    """What comparing with the quiet server's vectors has found."""

    n_samples: int
    n_compared: int
    n_wrong: int
    largest_difference: float


@dataclass(frozen=True)
class ClientFigures:
    """Whether the client itself was the brake."""

    cpu_s: float  # of this whole process
    lag: Percentiles  # from when requests were due to when they were sent


@dataclass(frozen=True)
class LoadReport:
    """One run."""

    plan: Mapping[str, Any]
    seconds: float  # until the last request ended
    totals: Counts
    by_kind: Mapping[str, Counts]
    timeline: Sequence[Second]  # without a gap
    client: ClientFigures
    verification: Verification | None = None
    interrupted: bool = False
    server: Mapping[str, str] = field(default_factory=dict)  # what it says of itself

    @property
    def answers_per_s(self) -> float:
        """Dense and sparse replies a second."""
        return self.per_s(self.totals.dense + self.totals.sparse)

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second in dense replies."""
        return self.per_s(self.totals.tokens)

    def per_s(self, count: int) -> float:
        """So many over the run's seconds."""
        return count / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "plan": dict(self.plan),
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "server": dict(self.server),
            "answers_per_s": self.answers_per_s,
            "tokens_per_s": self.tokens_per_s,
            "totals": self.totals.as_dict(),
            "by_kind": {kind: counts.as_dict() for kind, counts in self.by_kind.items()},
            "verification": self.verification and asdict(self.verification),
            "client": asdict(self.client),
            "timeline": [asdict(second) for second in self.timeline],
        }


@dataclass(frozen=True)
class Thresholds:
    """Lines that a run has to hold; None: not asked for."""

    max_failed_ratio: float | None = None
    min_dense_ratio: float | None = None
    max_p99_s: float | None = None

    def misses(self, report: LoadReport) -> list[str]:
        """What was not held, in words; a figure that was not measured holds nothing."""
        failed, dense = report.totals.failed_ratio, report.totals.dense_ratio
        p99_s = report.totals.latency.p99_s
        found = []
        if self.max_failed_ratio is not None and not _at_most(failed, self.max_failed_ratio):
            found.append(f"failed {_percent(failed)}, at most {_percent(self.max_failed_ratio)}")
        if self.min_dense_ratio is not None and not _at_least(dense, self.min_dense_ratio):
            found.append(f"dense {_percent(dense)}, at least {_percent(self.min_dense_ratio)}")
        if self.max_p99_s is not None and not _at_most(p99_s, self.max_p99_s):
            measured = "not measured" if p99_s is None else f"{p99_s:.3g} s"
            found.append(f"p99 {measured}, at most {self.max_p99_s:g} s")
        return found


def _at_most(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit


def _at_least(value: float | None, limit: float) -> bool:
    return value is not None and value >= limit


def _percent(ratio: float | None) -> str:
    return "not measured" if ratio is None else f"{ratio * 100:.4g} %"
