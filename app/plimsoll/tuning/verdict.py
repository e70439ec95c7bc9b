"""Say whether a change helped, from what was measured before and after it. Pure.

Helped means: runs are faster at hardly more pressure, or there is less pressure and runs are
hardly slower. Against a conversion of weights, which lasts seconds, a faster conversion is what
counts; the reason says what it costs runs.
"""

from dataclasses import dataclass
from enum import Enum

from plimsoll.tuning.bottleneck import Kind
from plimsoll.tuning.evidence import Evidence

# Helped: this much faster at hardly more pressure, or this much less pressure at hardly less speed.
FASTER_RATIO, STEADY_RATIO = 1.05, 0.95
RELIEF_RATIO = 0.90
# Speeds are compared where others' share of the processors has changed by no more.
SAME_OTHERS_RATIO = 0.15
LEAST_THROTTLED = 0.05


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


def pressure(kind: Kind, evidence: Evidence) -> float:
    """The number that a remedy against this kind should bring down; other kinds have none."""
    match kind:
        case Kind.MEMORY:
            return evidence.utilization_ratio
        case Kind.DEQUANTIZATION:
            return evidence.loading_s_per_gib
        case Kind.DISK:  # a token, so that a faster engine does not look like a busier disk
            return evidence.read_bytes_per_s / max(1.0, evidence.tokens_per_s)
        case Kind.CPU:  # as little as a quota takes now and then is no pressure to bring down
            return evidence.throttled_ratio if evidence.throttled_ratio >= LEAST_THROTTLED else 0.0
        case _:
            return 0.0


def judge(kind: Kind, before: Measure, after: Measure) -> tuple[Outcome, str]:
    """Say whether a change against `kind` helped."""
    relief = after.pressure / before.pressure if before.pressure > 0 else None
    speed = None
    # How much of the processors others get may follow from what was done against that; else it
    # is chance, and so is the speed of runs and of a conversion.
    change = abs(after.others_ratio - before.others_ratio)
    is_chance = change > SAME_OTHERS_RATIO and kind is not Kind.CPU
    if before.run_tokens_per_s and after.run_tokens_per_s and not is_chance:
        speed = after.run_tokens_per_s / before.run_tokens_per_s
    if kind is Kind.DEQUANTIZATION and (is_chance or not relief):
        speed = relief = None  # what it costs runs says nothing alone
    figures = [
        f"{name} × {ratio:.2f}"
        for name, ratio in (("speed", speed), ("pressure", relief))
        if ratio is not None
    ]
    if not figures:
        return Outcome.UNCLEAR, "too little to compare, or others' load changed"
    if _has_helped(kind, speed or 1, relief):
        return Outcome.KEPT, f"it helped: {', '.join(figures)}"
    return Outcome.REVERTED, f"it did not help: {', '.join(figures)}"


def _has_helped(kind: Kind, speed: float, relief: float | None) -> bool:
    if kind is Kind.DEQUANTIZATION:
        return relief is not None and relief <= 1 / FASTER_RATIO
    if relief is not None and relief <= RELIEF_RATIO and speed >= STEADY_RATIO:
        return True
    return speed >= FASTER_RATIO and (relief or 1) <= 1 / RELIEF_RATIO
