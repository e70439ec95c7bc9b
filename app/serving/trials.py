"""Try a remedy, measure, and keep it only if it helped.

Pure but for the remedy: the looks come in, and time with them. One trial at a time:

    rest → begin: evidence of before → SETTLE_S → measured for MEASURE_S → kept or reverted

What is kept is let go of when its bottleneck has been gone for a while, or after TRUSTED_S, to be
tried anew. What did not help rests twice as long each time.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from app.serving.bottleneck import Kind, name_bottleneck
from app.serving.evidence import Evidence, Look, evidence_of
from app.serving.remedies import Remedy
from app.serving.scheduler import DWELL_S, Cap

log = logging.getLogger(__name__)

# Before and after a change: the time that is compared, and the most where runs take long.
MEASURE_S, MOST_MEASURE_S = 8.0, 40.0
LEAST_RUNS = 2
# Until a change shows in whole runs.
SETTLE_S = 2.0
TRUSTED_S = 600.0
REST_S, MOST_REST_S = 60.0, 960.0

# Helped: this much faster at hardly more pressure, or this much less pressure at hardly less speed.
FASTER_RATIO, STEADY_RATIO = 1.05, 0.95
RELIEF_RATIO = 0.90
# Speeds are compared where others' share of the processors has changed by no more.
SAME_OTHERS_RATIO = 0.15
# Below, clients asked for too little to tell.
LEAST_BUSY_RATIO = 0.25

MOST_RECORDS = 20


class Outcome(Enum):
    """How a trial ended, or what became of a remedy that was kept."""

    KEPT = "kept"
    REVERTED = "reverted"
    UNCLEAR = "unclear"  # reverted too: there was nothing to compare
    LET_GO = "let_go"


@dataclass(frozen=True, slots=True)
class Measure:
    """What is compared: the speed of runs, None where none ended, and the kind's own pressure.

    others_ratio: what others took of our processors, on which the speed depends as well.
    """

    run_tokens_per_s: float | None
    pressure: float
    others_ratio: float = 0.0

    @classmethod
    def of(cls, kind: Kind, evidence: Evidence) -> "Measure":
        """Of the evidence against this kind."""
        return cls(evidence.run_tokens_per_s, pressure(kind, evidence), evidence.others_ratio)


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


def pressure(kind: Kind, evidence: Evidence) -> float:
    """The number that a remedy against this kind should bring down; other kinds have none."""
    match kind:
        case Kind.MEMORY:
            return evidence.utilization_ratio
        case Kind.DISK:  # a token, so that a faster engine does not look like a busier disk
            return evidence.read_bytes_per_s / max(1.0, evidence.tokens_per_s)
        case Kind.CPU:
            return evidence.throttled_ratio
        case _:
            return 0.0


def judge(kind: Kind, before: Measure, after: Measure) -> tuple[Outcome, str]:
    """Say whether a change against `kind` helped."""
    relief = after.pressure / before.pressure if before.pressure > 0 else None
    speed = None
    # How much of the processors others get may follow from what was done against that; else it
    # is chance, and so is the speed.
    chance = 0.0 if kind is Kind.CPU else abs(after.others_ratio - before.others_ratio)
    if before.run_tokens_per_s and after.run_tokens_per_s and chance <= SAME_OTHERS_RATIO:
        speed = after.run_tokens_per_s / before.run_tokens_per_s
    figures = [
        f"{name} × {ratio:.2f}"
        for name, ratio in (("speed", speed), ("pressure", relief))
        if ratio is not None
    ]
    if not figures:
        return Outcome.UNCLEAR, "too little to compare: runs were few, or others' load changed"
    is_faster = (speed or 1) >= FASTER_RATIO and (relief or 1) <= 1 / RELIEF_RATIO
    is_relieved = relief is not None and relief <= RELIEF_RATIO and (speed or 1) >= STEADY_RATIO
    if is_faster or is_relieved:
        return Outcome.KEPT, f"it helped: {', '.join(figures)}"
    return Outcome.REVERTED, f"it did not help: {', '.join(figures)}"


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
    def caps(self) -> list[Cap]:
        """What the remedies that are applied ask of the scheduler."""
        applied = [kept.remedy for kept in self._kept]
        if self._trial is not None:
            applied.append(self._trial)
        return [remedy.cap for remedy in applied if remedy.cap is not None]

    async def advance(self, kind: Kind, since_s: float, looks: Sequence[Look]) -> Record | None:
        """Take the latest looks, the oldest first; `kind` has been named since `since_s`.

        Returns what has just ended: a trial, or a remedy that was kept.
        """
        now_s = looks[-1].at_s
        if self._trial is not None:
            return self._finish(self._trial, kind, looks)
        ended = self._let_go(kind, now_s)
        if ended is None:
            await self._begin(kind, max(since_s, self._quiet_from_s), looks)
        return ended

    async def _begin(self, kind: Kind, from_s: float, looks: Sequence[Look]) -> None:
        now_s = looks[-1].at_s
        before = _measurable([look for look in looks if look.at_s >= from_s], now_s)
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
            change = await remedy.apply(before)
            if change is not None:
                self._trial = remedy
                self._quiet_from_s = now_s + SETTLE_S
                record = Record(remedy.name, kind, change, now_s, Measure.of(kind, before))
                self.records.append(record)
                log.info("bottleneck %s: trying %s: %s", kind.value, remedy.name, change)
                return

    def _finish(self, remedy: Remedy, kind: Kind, looks: Sequence[Look]) -> Record | None:
        now_s = looks[-1].at_s
        record = self.records[-1]
        if kind is Kind.MEMORY and remedy.kind is not Kind.MEMORY:
            outcome, reason = Outcome.UNCLEAR, "memory ran short meanwhile"
        else:
            after = _measurable([look for look in looks if look.at_s >= self._quiet_from_s], now_s)
            if after is None:
                return None
            measure = Measure.of(remedy.kind, after)
            record = replace(record, after=measure)
            if after.busy_ratio < LEAST_BUSY_RATIO and after.held_back_ratio == 0:
                outcome, reason = Outcome.UNCLEAR, "clients asked for too little to tell"
            else:
                outcome, reason = judge(remedy.kind, record.before, measure)
        self._trial = None
        record = self.records[-1] = replace(record, outcome=outcome, reason=reason)
        if outcome is Outcome.KEPT:
            self._kept.append(_Kept(remedy, now_s, now_s))
            self._n_fruitless[remedy.name] = 0
            self._quiet_from_s = now_s
        else:
            self._undo_fruitless(remedy, now_s)
        log.info(
            "bottleneck %s: %s %s, %s; tokens a second %s before, %s after",
            record.kind.value, remedy.name, outcome.value, reason,
            _shown(record.before), _shown(record.after),
        )  # fmt: skip
        return record

    def _let_go(self, kind: Kind, now_s: float) -> Record | None:
        """Undo one remedy that is needed no more, or has to prove itself again."""
        for kept in self._kept:
            if kept.remedy.kind is kind:
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
        # The scheduler keeps a cap for a while after nobody asks for it.
        self._quiet_from_s = now_s + DWELL_S + SETTLE_S


_TRY_ANEW = "to be tried anew"


def _why_let_go(kept: _Kept, kind: Kind, now_s: float) -> str | None:
    if now_s - kept.needed_s >= kept.remedy.outlives_cause_s:
        return "its cause is gone"
    if kind is Kind.MEMORY and kept.remedy.kind is Kind.DISK:
        return "memory is short"
    return _TRY_ANEW if now_s - kept.kept_s >= TRUSTED_S else None


def _measurable(looks: Sequence[Look], now_s: float) -> Evidence | None:
    """Evidence of the latest MEASURE_S, or of longer where runs take long; None: not yet."""
    for start in range(len(looks) - 2, -1, -1):
        passed_s = now_s - looks[start].at_s
        if passed_s < MEASURE_S:
            continue
        evidence = evidence_of(looks[start:])
        # Where nothing runs at all there is nothing to wait for.
        is_enough = evidence.n_runs >= LEAST_RUNS or evidence.busy_ratio == 0
        if is_enough or passed_s >= MOST_MEASURE_S:
            return evidence
    return None


def _is_acute(kind: Kind, looks: Sequence[Look]) -> bool:
    """Whether it is still so: what is named outlives its cause by the length of the window."""
    recent = looks[-4:]
    return len(recent) > 1 and name_bottleneck(evidence_of(recent), kind).kind is kind


def _shown(measure: Measure | None) -> str:
    if measure is None or measure.run_tokens_per_s is None:
        return "unknown"
    return f"{measure.run_tokens_per_s:.0f}"
