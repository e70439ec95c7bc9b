"""Every second: name what limits throughput, try what may help, and show both.

Owns the looks of the last minute, the name and when it came, and the trials.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from plimsoll.policy.asked import Asked
from plimsoll.telemetry.bottleneck import BottleneckMetrics
from plimsoll.tuning.bottleneck import Kind, advice, name_bottleneck
from plimsoll.tuning.evidence import Evidence, Look, evidence_of
from plimsoll.tuning.remedies import Remedy
from plimsoll.tuning.trials import MOST_MEASURE_S, Record, Trials
from plimsoll.tuning.verdict import Outcome

log = logging.getLogger(__name__)

# What is named follows from so many seconds.
WINDOW_S = 8.0
# Fewer tell nothing; but that weights are being converted is known at once.
LEAST_WINDOW_S = 2.5
# A name stays at least so long before another one takes its place.
DWELL_S = 5.0


class BottleneckResolver:
    """Owns the name of the bottleneck and what is done about it. Lives on the event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        metrics: BottleneckMetrics,
        remedies: Sequence[Remedy],
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._trials = Trials(remedies)
        self._looks: deque[Look] = deque()
        self._evidence: Evidence | None = None
        self._since_s = clock()
        self.bottleneck = name_bottleneck(Evidence(seconds=0.0))
        for remedy in remedies:
            metrics.expect(remedy.name, [outcome.value for outcome in Outcome])
        self._show()

    @property
    def asked(self) -> Asked:
        """What is asked of the governor."""
        return self._trials.asked

    def look(self, look: Look) -> None:
        """Take the latest measurements; once a second."""
        self._looks.append(look)
        while len(self._looks) > 2 and look.at_s - self._looks[1].at_s > MOST_MEASURE_S:
            self._looks.popleft()
        looks = list(self._looks)
        if len(looks) < 2:
            return
        window = _window(looks)
        self._evidence = evidence_of(window)
        if self._evidence.seconds >= LEAST_WINDOW_S or self._evidence.is_loading:
            self._name(look.at_s)
        ended = self._trials.advance(self.bottleneck.kind, self._since_s, looks)
        if ended is not None and ended.outcome is not None:
            self._metrics.tried(ended.action, ended.outcome.value)

    def report(self) -> dict[str, Any]:
        """What limits throughput now, why, and what was tried: plain values to show."""
        found, evidence = self.bottleneck, self._evidence
        plan = None if evidence is None else evidence.plan
        now_s = self._clock()
        return {
            "kind": found.kind.value,
            "named_for_s": round(now_s - self._since_s, 1),
            "reasons": found.reasons,
            "what_you_could_do": (advice(found.kind, evidence) if evidence else ()),
            "scores": {kind.value: round(score, 2) for kind, score in found.scores.items()},
            "evidence": None if evidence is None else _shown_evidence(evidence),
            "caps": self.asked.caps,
            "plan_reasons": [*plan.reasons, *plan.step_reasons] if plan else [],
            "actions": [_shown_record(record, now_s) for record in self._trials.records],
        }

    def _name(self, now_s: float) -> None:
        assert self._evidence is not None  # noqa: S101 - made just before
        earlier = self.bottleneck.kind
        found = name_bottleneck(self._evidence, earlier)
        is_settled = earlier is Kind.NONE or now_s - self._since_s >= DWELL_S
        if found.kind is not earlier:
            if not is_settled:
                return
            self._since_s = now_s
            log.info(
                "bottleneck %s -> %s: %s",
                earlier.value, found.kind.value, "; ".join(found.reasons),
            )  # fmt: skip
        self.bottleneck = found
        self._show()

    def _show(self) -> None:
        self._metrics.show(self.bottleneck.kind.value, [kind.value for kind in Kind])


def _window(looks: Sequence[Look]) -> Sequence[Look]:
    """The latest looks, over WINDOW_S or as long as there is."""
    now_s = looks[-1].at_s
    for start in range(len(looks) - 2, -1, -1):
        if now_s - looks[start].at_s >= WINDOW_S:
            return looks[start:]
    return looks


def _shown_evidence(evidence: Evidence) -> dict[str, Any]:
    shown = asdict(evidence) | {
        "others_by_core": {str(core): share for core, share in evidence.others_by_core.items()},
        "queue_s": evidence.queue_s,
    }
    del shown["plan"], shown["weights"]  # they stand elsewhere in what is shown
    return _rounded(shown)


def _shown_record(record: Record, now_s: float) -> dict[str, Any]:
    shown = asdict(record)
    begun_s = shown.pop("at_s")
    shown["kind"] = record.kind.value
    shown["outcome"] = record.outcome.value if record.outcome else None
    return {"ago_s": round(now_s - begun_s, 1)} | _rounded(shown)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Figures short enough to read."""
    return {name: _round(value) for name, value in values.items()}


def _round(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _rounded(value)
    return round(value, 4) if isinstance(value, float) else value
