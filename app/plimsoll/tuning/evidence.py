"""What the last seconds were like: rates and shares over a row of looks. Pure.

A look has counters and levels of one moment. Between the first and the last of a row counters
give rates; levels are averaged over all but the first.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.machine.cpu import CPUSample, cpu_load
from plimsoll.machine.disk import DiskSample
from plimsoll.machine.memory import MemorySample
from plimsoll.policy.runs import EngineTotals
from plimsoll.policy.scheduler import Plan
from plimsoll.sidecar.load_times import EXPANDING, STORING, LoadTotals

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Everything that was measured at one moment.

    others_s: others' work on each processor, of which only differences mean anything.
    drain_tokens_per_s: what admission takes the engine's speed for.
    is_held_back: requests wait for memory, or the breaker refuses them.
    plan: what the engine holds to. weights: of the model that ran last, None where none has.
    """

    at_s: float
    memory: MemorySample
    cpu: CPUSample
    disk: DiskSample
    engine: EngineTotals = field(default_factory=EngineTotals)
    loads: LoadTotals = field(default_factory=LoadTotals)
    others_s: Mapping[int, float] = field(default_factory=dict)
    queue_tokens: int = 0
    drain_tokens_per_s: float = 0.0
    is_held_back: bool = False
    plan: Plan | None = None
    weights: WeightSizes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Means over `seconds`; ratios are shares of that time or of what there is.

    utilization_ratio: used memory over budget. held_back_ratio: time in which requests waited
        for memory.
    pressure_ratio, io_pressure_ratio: stalls for memory and for disks (PSI), 0 where unknown.
    system_ratio: share of our processor time that the kernel took, for faults and reclaim.
    others_ratio, own_ratio: shares of our processors' time. throttled_ratio: withheld by a quota.
    others_by_core: share of each processor's time that others took.
    busy_ratio: time with a run under way. run_tokens_per_s: speed of runs; None where none ended.
    arrived_tokens_per_s: what has run and what the queue has grown by.
    loading_ratio: time with weights being converted. is_loading: they are at this moment.
    expand_ratio: share of that work that was expanding and checking, the rest being disk.
    loading_s_per_gib: what a GiB of expanded weights took of that time, 0 where none was expanded.
    plan, weights: of the last look.
    """

    seconds: float
    cores: float = 1.0
    used_bytes: int = 0
    budget_bytes: int = 1
    utilization_ratio: float = 0.0
    held_back_ratio: float = 0.0
    pressure_ratio: float = 0.0
    io_pressure_ratio: float = 0.0
    refaults_per_s: float = 0.0
    read_bytes_per_s: float = 0.0
    major_faults_per_s: float = 0.0
    system_ratio: float = 0.0
    others_ratio: float = 0.0
    own_ratio: float = 0.0
    throttled_ratio: float = 0.0
    others_by_core: Mapping[int, float] = field(default_factory=dict)
    busy_ratio: float = 0.0
    n_runs: int = 0
    tokens_per_s: float = 0.0
    run_tokens_per_s: float | None = None
    arrived_tokens_per_s: float = 0.0
    drain_tokens_per_s: float = 0.0
    queue_tokens: float = 0.0
    loading_ratio: float = 0.0
    is_loading: bool = False
    expand_ratio: float = 0.0
    loading_s_per_gib: float = 0.0
    plan: Plan | None = None
    weights: WeightSizes | None = None

    @property
    def queue_s(self) -> float:
        """How long a request that comes now waits before work on it begins."""
        return self.queue_tokens / self.drain_tokens_per_s if self.drain_tokens_per_s else 0.0


def evidence_of(looks: Sequence[Look]) -> Evidence:
    """Sum up two looks or more, the oldest first."""
    first, last = looks[0], looks[-1]
    seconds = max(1e-3, last.at_s - first.at_s)
    later = looks[1:]
    load = cpu_load(first.cpu, last.cpu, seconds)
    own_s = last.cpu.own_s - first.cpu.own_s
    engine = _since(first.engine, last.engine)
    queue_growth = last.queue_tokens - first.queue_tokens
    return Evidence(
        seconds=seconds,
        cores=last.cpu.cores,
        used_bytes=round(_mean([look.memory.used_bytes for look in later])),
        budget_bytes=last.memory.budget_bytes,
        utilization_ratio=_mean([look.memory.utilization_ratio for look in later]),
        held_back_ratio=_mean([look.is_held_back for look in later]),
        pressure_ratio=_mean([look.memory.pressure_ratio or 0.0 for look in later]),
        io_pressure_ratio=_mean([look.disk.pressure_ratio or 0.0 for look in later]),
        refaults_per_s=max(0, last.memory.n_refaults - first.memory.n_refaults) / seconds,
        read_bytes_per_s=max(0, last.disk.read_bytes - first.disk.read_bytes) / seconds,
        major_faults_per_s=(last.disk.n_major_faults - first.disk.n_major_faults) / seconds,
        system_ratio=_share(last.disk.system_s - first.disk.system_s, own_s),
        others_ratio=load.others_ratio,
        own_ratio=_share(own_s, seconds * (len(last.cpu.cpus) or last.cpu.cores)),
        throttled_ratio=load.throttled_ratio,
        others_by_core={
            core: _share(last.others_s[core] - first.others_s[core], seconds)
            for core in sorted(last.cpu.cpus & first.others_s.keys() & last.others_s.keys())
        },
        busy_ratio=_share(engine.busy_s, seconds),
        n_runs=engine.n_runs,
        tokens_per_s=engine.n_tokens / seconds,
        run_tokens_per_s=engine.n_tokens / engine.run_s if engine.run_s > 0 else None,
        arrived_tokens_per_s=max(0.0, engine.n_tokens + queue_growth) / seconds,
        drain_tokens_per_s=last.drain_tokens_per_s,
        queue_tokens=_mean([look.queue_tokens for look in later]),
        loading_ratio=_share(last.loads.loading_s - first.loads.loading_s, seconds),
        is_loading=last.loads.n_under_way > 0,
        expand_ratio=_expand_ratio(first.loads, last.loads),
        loading_s_per_gib=_loading_s_per_gib(first.loads, last.loads),
        plan=last.plan,
        weights=last.weights,
    )


def _since(earlier: EngineTotals, later: EngineTotals) -> EngineTotals:
    return EngineTotals(
        later.busy_s - earlier.busy_s,
        later.n_runs - earlier.n_runs,
        later.n_tokens - earlier.n_tokens,
        later.run_s - earlier.run_s,
    )


def _expand_ratio(earlier: LoadTotals, later: LoadTotals) -> float:
    def passed_s(stages: Collection[str]) -> float:
        return sum(later.stage_s.get(name, 0) - earlier.stage_s.get(name, 0) for name in stages)

    return _share(passed_s(EXPANDING), passed_s((*EXPANDING, *STORING)))


def _loading_s_per_gib(earlier: LoadTotals, later: LoadTotals) -> float:
    n_bytes = later.n_bytes - earlier.n_bytes
    return GIB * (later.loading_s - earlier.loading_s) / n_bytes if n_bytes else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
