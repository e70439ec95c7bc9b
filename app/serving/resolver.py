"""Every second: name what limits throughput, try what may help, and show both.

Owns the looks of the last minute, the name and when it came, and the trials.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from app.serving.bottleneck import Kind, advice, name_bottleneck
from app.serving.evidence import Evidence, Look, evidence_of
from app.serving.remedies import Remedy
from app.serving.scheduler import Cap
from app.serving.trials import MOST_MEASURE_S, Outcome, Record, Trials
from app.telemetry import Telemetry

log = logging.getLogger(__name__)

# What is named follows from so many seconds.
WINDOW_S = 8.0
# Fewer tell nothing; but that weights are being converted is known at once.
LEAST_WINDOW_S = 2.5
# A name stays at least so long before another one takes its place.
DWELL_S = 5.0


class BottleneckResolver:
    """Owns the name of the bottleneck and what is done about it. Lives on the event loop.

    weights_bytes: of the model that ran last, for advice.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        telemetry: Telemetry,
        remedies: Sequence[Remedy],
        *,
        weights_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._trials = Trials(remedies)
        self._weights_bytes = weights_bytes
        self._looks: deque[Look] = deque()
        self._evidence: Evidence | None = None
        self._since_s = clock()
        self.bottleneck = name_bottleneck(Evidence(seconds=0.0))
        for remedy in remedies:
            for outcome in Outcome:
                telemetry.bottleneck_actions.labels(remedy.name, outcome.value)
        self._show()

    def caps(self) -> Sequence[Cap]:
        """What the scheduler should keep."""
        return self._trials.caps

    async def look(self, look: Look) -> None:
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
        ended = await self._trials.advance(self.bottleneck.kind, self._since_s, looks)
        if ended is not None and ended.outcome is not None:
            self._telemetry.bottleneck_actions.labels(ended.action, ended.outcome.value).inc()

    def report(self) -> dict[str, Any]:
        """What limits throughput now, why, and what was tried: plain values to show."""
        found, evidence = self.bottleneck, self._evidence
        now_s = self._clock()
        return {
            "kind": found.kind.value,
            "named_for_s": round(now_s - self._since_s, 1),
            "reasons": found.reasons,
            "what_you_could_do": (
                advice(found.kind, evidence, self._weights_bytes()) if evidence else ()
            ),
            "scores": {kind.value: round(score, 2) for kind, score in found.scores.items()},
            "evidence": None if evidence is None else _shown_evidence(evidence),
            "caps": self.caps(),
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
        for kind in Kind:
            self._telemetry.bottleneck.labels(kind.value).set(kind is self.bottleneck.kind)


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
