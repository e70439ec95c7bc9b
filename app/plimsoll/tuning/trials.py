"""Try a remedy, measure, and keep it only if it helped.

Pure but for the remedy: the looks come in, and time with them. One trial at a time:

    rest → begin: evidence of before → SETTLE_S → measured for MEASURE_S → kept or reverted

Whether it helped is the verdict's matter (verdict.py). A conversion of weights lasts seconds, so
CONVERTED_S of it are enough there, and what was done for it ends with it.

What is kept is let go of when its bottleneck has been gone for a while, or after TRUSTED_S, to be
tried anew. What did not help rests twice as long each time.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from plimsoll.policy.asked import NOTHING_ASKED, Asked
from plimsoll.policy.scheduler import DWELL_S
from plimsoll.tuning.bottleneck import Kind, name_bottleneck
from plimsoll.tuning.evidence import Evidence, Look, evidence_of
from plimsoll.tuning.remedies import Remedy
from plimsoll.tuning.verdict import Measure, Outcome, judge

log = logging.getLogger(__name__)

# Before and after a change: the time that is compared, and the most where runs take long.
MEASURE_S, MOST_MEASURE_S = 8.0, 40.0
LEAST_RUNS = 2
# Before and after a change against a conversion: so much time in which one was under way.
CONVERTED_S = 1.9
# Until a change shows in whole runs; in a conversion, which may be over soon; and in what is done
# about requests, at most, which shows once those that are there have been served.
SETTLE_S, CONVERSION_SETTLE_S, MOST_SETTLE_S = 2.0, 1.0, 20.0
TRUSTED_S = 600.0
REST_S, MOST_REST_S = 60.0, 960.0

# Below, clients asked for too little to tell.
LEAST_BUSY_RATIO = 0.25

MOST_RECORDS = 20


@dataclass(frozen=True, slots=True)
class Record:
    """One trial, for people; `at_s` in the clock's seconds."""

    action: str
    kind: Kind
    change: str
    at_s: float
    before: Measure
    after: Measure | None = None
    outcome: Outcome | None = None  # None: under way
    reason: str = "under way"


@dataclass
class _Kept:
    remedy: Remedy
    kept_s: float
    needed_s: float


class Trials:
    """Owns the remedies: which one is on trial, which are applied, which have to rest.

    remedies: those of a kind are tried in this order.
    """

    def __init__(self, remedies: Sequence[Remedy]) -> None:
        self._remedies = tuple(remedies)
        self._kept: list[_Kept] = []
        self._trial: Remedy | None = None
        self._rests_until_s: dict[str, float] = {}
        self._n_fruitless: dict[str, int] = {}
        self._quiet_from_s = float("-inf")  # nothing of ours has changed since
        self.records: deque[Record] = deque(maxlen=MOST_RECORDS)

    @property
    def asked(self) -> Asked:
        """What the remedies that are applied ask of the governor."""
        applied = [kept.remedy for kept in self._kept]
        if self._trial is not None:
            applied.append(self._trial)
        return reduce(Asked.with_also, (remedy.asked for remedy in applied), NOTHING_ASKED)

    def advance(self, kind: Kind, since_s: float, looks: Sequence[Look]) -> Record | None:
        """Take the latest looks, the oldest first; `kind` has been named since `since_s`.

        Returns what has just ended: a trial, or a remedy that was kept.
        """
        if self._trial is not None:
            return self._finish(self._trial, kind, looks)
        ended = self._let_go(kind, looks)
        if ended is None:
            self._begin(kind, max(since_s, self._quiet_from_s), looks)
        return ended

    def _begin(self, kind: Kind, from_s: float, looks: Sequence[Look]) -> None:
        now_s = looks[-1].at_s
        before = _measurable(kind, [look for look in looks if look.at_s >= from_s])
        candidates = [
            remedy
            for remedy in self._remedies
            if remedy.kind is kind
            and self._rests_until_s.get(remedy.name, now_s) <= now_s
            and not any(kept.remedy is remedy for kept in self._kept)
        ]
        if before is None or not candidates or not _is_acute(kind, looks):
            return
        for remedy in candidates:
            change = remedy.apply(before)
            if change is not None:
                self._trial = remedy
                self._quiet_from_s = now_s + _settle_s(kind, before)
                record = Record(remedy.name, kind, change, now_s, Measure.of(kind, before))
                self.records.append(record)
                log.info("bottleneck %s: trying %s: %s", kind.value, remedy.name, change)
                return

    def _finish(self, remedy: Remedy, kind: Kind, looks: Sequence[Look]) -> Record | None:
        verdict = self._verdict(remedy, kind, looks)
        if verdict is None:
            return None
        outcome, reason, after = verdict
        now_s = looks[-1].at_s
        record = replace(self.records[-1], after=after, outcome=outcome, reason=reason)
        self._trial = None
        self.records[-1] = record
        if outcome is Outcome.KEPT:
            self._kept.append(_Kept(remedy, now_s, now_s))
            self._n_fruitless[remedy.name] = 0
            self._quiet_from_s = now_s
        else:
            self._undo_fruitless(remedy, now_s)
        log.info(
            "bottleneck %s: %s %s, %s; tokens a second %s before, %s after",
            record.kind.value, remedy.name, outcome.value, reason,
            _shown(record.before), _shown(after),
        )  # fmt: skip
        return record

    def _verdict(
        self, remedy: Remedy, kind: Kind, looks: Sequence[Look]
    ) -> tuple[Outcome, str, Measure | None] | None:
        """What came of the trial under way, and what was measured; None: not yet."""
        if kind is Kind.MEMORY and remedy.kind is not Kind.MEMORY:
            return Outcome.UNCLEAR, "memory ran short", None
        quiet = [look for look in looks if look.at_s >= self._quiet_from_s]
        evidence = _measurable(remedy.kind, quiet)
        if evidence is None:
            is_over = remedy.kind is Kind.DEQUANTIZATION and not _is_loading(looks)
            too_soon = Outcome.UNCLEAR, "the conversion ended too soon to compare", None
            return too_soon if is_over else None
        after = Measure.of(remedy.kind, evidence)
        if evidence.busy_ratio < LEAST_BUSY_RATIO and evidence.held_back_ratio == 0:
            return Outcome.UNCLEAR, "clients asked for too little to tell", after
        return *judge(remedy.kind, self.records[-1].before, after), after

    def _let_go(self, kind: Kind, looks: Sequence[Look]) -> Record | None:
        """Undo one remedy that is needed no more, or has to prove itself again."""
        now_s = looks[-1].at_s
        for kept in self._kept:
            # The name of a conversion outlives it by the length of the window.
            is_over = kind is Kind.DEQUANTIZATION and not _is_loading(looks)
            if kept.remedy.kind is kind and not is_over:
                kept.needed_s = now_s
        for kept in self._kept:
            reason = _why_let_go(kept, kind, now_s)
            if reason is None:
                continue
            remedy = kept.remedy
            self._kept.remove(kept)
            self._undo(remedy, now_s, rest_s=0.0 if reason == _TRY_ANEW else REST_S)
            log.info("bottleneck: %s is let go: %s", remedy.name, reason)
            nothing = Measure(None, 0.0)
            record = Record(
                remedy.name, remedy.kind, "undone", now_s, nothing, None, Outcome.LET_GO, reason
            )
            self.records.append(record)
            return record
        return None

    def _undo_fruitless(self, remedy: Remedy, now_s: float) -> None:
        n_fruitless = self._n_fruitless.get(remedy.name, 0) + 1
        self._n_fruitless[remedy.name] = n_fruitless
        self._undo(remedy, now_s, rest_s=min(MOST_REST_S, REST_S * 2 ** (n_fruitless - 1)))

    def _undo(self, remedy: Remedy, now_s: float, *, rest_s: float) -> None:
        remedy.revert()
        self._rests_until_s[remedy.name] = now_s + rest_s
        # The scheduler keeps a cap for a while after it is asked for no more.
        self._quiet_from_s = now_s + DWELL_S + SETTLE_S


_TRY_ANEW = "to be tried anew"


def _why_let_go(kept: _Kept, kind: Kind, now_s: float) -> str | None:
    if now_s - kept.needed_s > kept.remedy.outlives_cause_s:
        return "its cause is gone"
    if kind is Kind.MEMORY and kept.remedy.kind is Kind.DISK:
        return "memory is short"
    return _TRY_ANEW if now_s - kept.kept_s >= TRUSTED_S else None


def _measurable(kind: Kind, looks: Sequence[Look]) -> Evidence | None:
    """Evidence of the latest seconds that tell something of this kind; None: not yet."""
    for start in range(len(looks) - 2, -1, -1):
        evidence = evidence_of(looks[start:])
        if kind is Kind.DEQUANTIZATION:
            is_enough = evidence.loading_ratio * evidence.seconds >= CONVERTED_S
        elif evidence.seconds < MEASURE_S:
            continue
        else:
            # Longer where runs take long; where nothing runs at all there is nothing to wait for.
            has_runs = evidence.n_runs >= LEAST_RUNS or evidence.busy_ratio == 0
            is_enough = has_runs or evidence.seconds >= MOST_MEASURE_S
        if is_enough:
            return evidence
    return None


def _settle_s(kind: Kind, evidence: Evidence) -> float:
    """Until a change shows."""
    match kind:
        case Kind.MEMORY:
            return min(MOST_SETTLE_S, SETTLE_S + evidence.queue_s)
        case Kind.DEQUANTIZATION:
            return CONVERSION_SETTLE_S
        case _:
            return SETTLE_S


def _is_loading(looks: Sequence[Look]) -> bool:
    return looks[-1].loads.n_under_way > 0


def _is_acute(kind: Kind, looks: Sequence[Look]) -> bool:
    """Whether it is still so: what is named outlives its cause by the length of the window."""
    recent = looks[-4:]
    return len(recent) > 1 and name_bottleneck(evidence_of(recent), kind).kind is kind


def _shown(measure: Measure | None) -> str:
    if measure is None or measure.run_tokens_per_s is None:
        return "unknown"
    return f"{measure.run_tokens_per_s:.0f}"
