"""Name what limits throughput, and say what a person could do about it. Pure.

Each kind has a score: how far its signs are above their lines, 1 being on them. The first of these
whose score reaches 1 is the name, since each may bring about those below it:

    memory          used memory above its line, requests that wait for it, or stalls for it
    dequantization  a model's weights are being converted, and not only the disk is at work
    disk            reading all the time, and paying for it in stalls or in the kernel; or a
                    conversion that does little but read and write
    cpu             others, or the quota, take processor time that the engine asked for
    queue           more arrives than the engine drains, and it wants for nothing
    none            clients ask for less than the server could do

Only a server at work has a bottleneck. A kind that is named stays so until it is well below its
lines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from plimsoll.policy.lines import DISK_STALLS_RATIO, HIGH_RATIO, STALLS_RATIO
from plimsoll.tuning.evidence import Evidence

MIB = 1 << 20

# A kind that is named leaves when its score is below this.
STAY_SCORE = 0.75
# Below, clients leave the engine idle for most of the time.
BUSY_LINE_RATIO = 0.50
HELD_BACK_LINE_RATIO = 0.10
READ_LINE_BYTES_PER_S = 16 * MIB
# Computing takes some hundredths of its time in the kernel; faults and reclaim take the rest.
SYSTEM_LINE_RATIO = 0.25
# A conversion this long in a row of looks was felt, even where it has just ended.
LOADING_LINE_RATIO = 0.15
# With less than this of its work being done by processors, a conversion waits for the disk.
EXPAND_LINE_RATIO = 0.25
OTHERS_LINE_RATIO = 0.30
# While processors are idle, others' work takes nothing from us.
FULL_RATIO = 0.90
QUEUE_LINE_S = 2.0
SATURATED_RATIO = 0.90


class Kind(Enum):
    """What limits throughput."""

    NONE = "none"
    MEMORY = "memory"
    DISK = "disk"
    CPU = "cpu"
    DEQUANTIZATION = "dequantization"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The name, its signs in words, and the score of every kind."""

    kind: Kind
    reasons: tuple[str, ...]
    scores: Mapping[Kind, float]

    @property
    def score(self) -> float:
        """Of the kind that is named; 0 for none."""
        return self.scores.get(self.kind, 0.0)


Signs = list[tuple[float, str]]
"""Each a score and what it says."""


def name_bottleneck(evidence: Evidence, named: Kind = Kind.NONE) -> Bottleneck:
    """Decide from the last seconds; `named` is the kind that is named so far."""
    signs = {kind: find(evidence) for kind, find in _SIGNS.items()}
    scores = {
        kind: max((score for score, _ in found), default=0.0) for kind, found in signs.items()
    }
    for kind, score in scores.items():
        line = STAY_SCORE if kind is named else 1.0
        if score >= line:
            reasons = tuple(text for sign, text in signs[kind] if sign >= line)
            return Bottleneck(kind, reasons, scores)
    return Bottleneck(Kind.NONE, (_why_none(evidence),), scores)


def _is_asked(evidence: Evidence) -> bool:
    return evidence.busy_ratio >= BUSY_LINE_RATIO or evidence.held_back_ratio > 0


def _memory(evidence: Evidence) -> Signs:
    if not _is_asked(evidence):
        return []
    used = evidence.utilization_ratio
    signs = [
        (used / HIGH_RATIO, f"{_percent(used)} of the memory budget is used"),
        (
            evidence.held_back_ratio / HELD_BACK_LINE_RATIO,
            f"requests waited for memory in {_percent(evidence.held_back_ratio)} of the time",
        ),
    ]
    # A process that reads its own pages again stalls as well, and that is the disk's matter.
    if evidence.read_bytes_per_s < READ_LINE_BYTES_PER_S:
        stalls = evidence.pressure_ratio
        signs.append(
            (
                stalls / STALLS_RATIO,
                f"tasks stall for memory in {_percent(stalls)} of the time",
            )
        )
    return signs


def _dequantization(evidence: Evidence) -> Signs:
    is_computing = evidence.expand_ratio >= EXPAND_LINE_RATIO
    return [_conversion(evidence)] if is_computing else []


def _disk(evidence: Evidence) -> Signs:
    reads = evidence.read_bytes_per_s
    conversion = _conversion(evidence)
    if evidence.expand_ratio < EXPAND_LINE_RATIO and conversion[0] >= STAY_SCORE:
        return [conversion]
    if not _is_asked(evidence):
        return []
    io, memory, system = (
        evidence.io_pressure_ratio,
        evidence.pressure_ratio,
        evidence.system_ratio,
    )
    costs = (
        (io / DISK_STALLS_RATIO, f"tasks stall for disks in {_percent(io)} of the time"),
        (memory / DISK_STALLS_RATIO, f"tasks stall for memory in {_percent(memory)} of the time"),
        (system / SYSTEM_LINE_RATIO, f"the kernel takes {_percent(system)} of our processor time"),
    )
    read = f"{reads / MIB:.0f} MiB a second are read from disk"
    return [
        (min(score, reads / READ_LINE_BYTES_PER_S), f"{read}, and {text}") for score, text in costs
    ]


def _cpu(evidence: Evidence) -> Signs:
    if not _is_asked(evidence):
        return []
    signs = [
        (
            evidence.throttled_ratio / OTHERS_LINE_RATIO,
            f"the CPU quota held us back in {_percent(evidence.throttled_ratio)} of the time",
        )
    ]
    others, total = evidence.others_ratio, evidence.others_ratio + evidence.own_ratio
    text = f"other processes take {_percent(others)} of our processors, and hardly any is idle"
    signs.append((min(others / OTHERS_LINE_RATIO, total / FULL_RATIO), text))
    return signs


def _queue(evidence: Evidence) -> Signs:
    if evidence.busy_ratio < STAY_SCORE * SATURATED_RATIO:
        return []
    score = min(evidence.queue_s / QUEUE_LINE_S, evidence.busy_ratio / SATURATED_RATIO)
    return [
        (
            score,
            f"work waits {evidence.queue_s:.1f} s for the engine, which is never idle: "
            f"{evidence.arrived_tokens_per_s:.0f} tokens a second arrive and "
            f"{evidence.tokens_per_s:.0f} drain",
        )
    ]


_SIGNS: Mapping[Kind, Callable[[Evidence], Signs]] = {  # in the order of precedence
    Kind.MEMORY: _memory,
    Kind.DEQUANTIZATION: _dequantization,
    Kind.DISK: _disk,
    Kind.CPU: _cpu,
    Kind.QUEUE: _queue,
}


def _conversion(evidence: Evidence) -> tuple[float, str]:
    share = evidence.expand_ratio
    return (
        max(float(evidence.is_loading), evidence.loading_ratio / LOADING_LINE_RATIO),
        f"weights are being converted: expanding and checking is {_percent(share)} of that work, "
        f"reading and writing {_percent(1 - share)}",
    )


def _why_none(evidence: Evidence) -> str:
    if evidence.busy_ratio == 0:
        return "nothing is asked"
    if not _is_asked(evidence):
        return (
            f"the engine is busy {_percent(evidence.busy_ratio)} of the time: clients set the pace"
        )
    return "the engine works, no request waits for long, and nothing holds it back"


def advice(kind: Kind, evidence: Evidence) -> tuple[str, ...]:
    """What a person could do."""
    match kind:
        case Kind.MEMORY:
            return (
                "raise the memory limit, or send fewer and shorter texts at a time",
                "serve fewer models at once (PLIMSOLL_MAX_OPEN_MODELS)",
            )
        case Kind.DEQUANTIZATION:
            return (
                "wait: this happens once for a model file, the result is kept in the cache folder",
                "do it before serving, with `plimsoll pull`, or keep the cache folder on a volume",
            )
        case Kind.DISK if evidence.is_loading:
            return ("put the cache folder and the model file on a faster disk; this happens once",)
        case Kind.DISK:
            return _disk_advice(evidence)
        case Kind.CPU:
            return (
                "give this server processors of its own, or a larger quota",
                f"or fewer threads than its {evidence.cores:g} cores (PLIMSOLL_THREADS)",
            )
        case Kind.QUEUE:
            return (
                "add cores or another instance, or serve a smaller model",
                "clients that get 429 should wait as Retry-After says",
            )
        case Kind.NONE:
            return ()


def _disk_advice(evidence: Evidence) -> tuple[str, ...]:
    weights_bytes = evidence.weights.weights_bytes if evidence.weights else 0
    missing_bytes = weights_bytes + evidence.used_bytes - evidence.budget_bytes
    more_mib = max(0, missing_bytes) // MIB
    weights_mib = weights_bytes // MIB
    said = ["send more texts at a time: they share one pass over the weights"]
    if more_mib:
        said.insert(0, f"raise the memory limit by {more_mib} MiB: then all weights stay in memory")
    if weights_mib:
        said.append(
            f"as float16 the weights would take {weights_mib // 2} MiB, not {weights_mib}, and "
            "half as much would be read; Plimsoll does not keep them so, because only those of an "
            "F16 file would give the same vectors to the last bit"
        )
    return tuple(said)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"
