"""Counts while a run is under way; turned into a report at its end."""

from collections import Counter
from collections.abc import Iterable, Sequence

from plimsoll.bench.load.histogram import LatencyHistogram
from plimsoll.bench.load.replies import Outcome, Verdict
from plimsoll.bench.load.report import Counts, Second

MAX_CAUSES = 64  # a server that makes up codes must not fill the memory
OTHER_CAUSES = "others"


class KindTally:
    """Counts of one kind of request, or of all."""

    def __init__(self) -> None:
        self.sent = 0
        self.tokens = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.causes: Counter[str] = Counter()
        self.latency = LatencyHistogram()
        self.refusal_latency = LatencyHistogram()

    def add(self, verdict: Verdict, latency_s: float) -> None:
        """Count a request that has ended."""
        self.outcomes[verdict.outcome] += 1
        self.tokens += verdict.n_tokens
        if verdict.cause:
            known = verdict.cause in self.causes or len(self.causes) < MAX_CAUSES
            self.causes[verdict.cause if known else OTHER_CAUSES] += 1
        if verdict.outcome in (Outcome.DENSE, Outcome.SPARSE) or verdict.timed_out:
            self.latency.add(latency_s)
        elif verdict.outcome in (Outcome.REFUSED, Outcome.REJECTED):
            self.refusal_latency.add(latency_s)

    def merge(self, other: "KindTally") -> None:
        """Count all that `other` has counted."""
        self.sent += other.sent
        self.tokens += other.tokens
        self.outcomes.update(other.outcomes)
        self.causes.update(other.causes)
        self.latency.merge(other.latency)
        self.refusal_latency.merge(other.refusal_latency)

    def counts(self) -> Counts:
        """Frozen."""
        return Counts(
            sent=self.sent,
            **_by_name(self.outcomes),
            tokens=self.tokens,
            causes=dict(self.causes.most_common()),
            latency=self.latency.percentiles(),
            refusal_latency=self.refusal_latency.percentiles(),
        )


class Timeline:
    """Seconds of a run. Owns the current one's histogram; past ones are frozen into a row."""

    def __init__(self) -> None:
        self._past: list[Second] = []
        self._current = KindTally()

    def note_sent(self, at_s: float) -> None:
        """Count a request sent so long after the start; times never go back."""
        self._advance(int(at_s))
        self._current.sent += 1

    def note_end(self, verdict: Verdict, latency_s: float, at_s: float) -> None:
        """Count a request that ended so long after the start."""
        self._advance(int(at_s))
        self._current.add(verdict, latency_s)

    def seconds(self) -> Sequence[Second]:
        """All seconds so far, those without an event too: a stall is to be seen."""
        return [*self._past, self._frozen()]

    def _advance(self, second: int) -> None:
        while len(self._past) < second:
            self._past.append(self._frozen())
            self._current = KindTally()

    def _frozen(self) -> Second:
        current = self._current
        return Second(
            second=len(self._past),
            sent=current.sent,
            **_by_name(current.outcomes),
            tokens=current.tokens,
            p50_s=current.latency.percentile(50),
            p99_s=current.latency.percentile(99),
        )


class Tally:
    """Every count of one run. The event loop alone touches it. Times are since the start."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self.by_kind = {kind: KindTally() for kind in kinds}
        self.timeline = Timeline()
        self.lag = LatencyHistogram()
        self.last_end_s = 0.0

    def note_sent(self, kind: str, *, at_s: float, lag_s: float) -> None:
        """Count a request when it is sent; lag: how long it had been due."""
        self.by_kind[kind].sent += 1
        self.lag.add(lag_s)
        self.timeline.note_sent(at_s)

    def note_end(self, kind: str, verdict: Verdict, *, at_s: float, latency_s: float) -> None:
        """Count what became of it; latency: since it was due."""
        self.by_kind[kind].add(verdict, latency_s)
        self.timeline.note_end(verdict, latency_s, at_s)
        self.last_end_s = at_s

    def totals(self) -> KindTally:
        """All kinds together."""
        together = KindTally()
        for kind in self.by_kind.values():
            together.merge(kind)
        return together


def _by_name(outcomes: Counter[Outcome]) -> dict[str, int]:
    return {outcome.value: outcomes[outcome] for outcome in Outcome}
