"""What the server is doing at one moment: one frozen record, made once and only looked at.

/health, /status, /bottleneck, the status page and the gauges all render this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plimsoll.encoder.traits import Traits
from plimsoll.machine.cpu import CPULoad
from plimsoll.machine.memory import MemorySample
from plimsoll.policy.breaker import BreakerSnapshot
from plimsoll.policy.scheduler import Plan
from plimsoll.telemetry.metrics import Telemetry


@dataclass(frozen=True, slots=True)
class Moment:
    """What a tick of the control loop found, as it is remembered; `at_s` in the clock's seconds."""

    at_s: float
    used_bytes: int
    working_set_bytes: int
    predicted_bytes: int
    tokens_per_s: float
    step: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One served model. traits: of its last open, None before the first.

    error: why it would not open. notice: what has become of its files on disk.
    loaded_bytes, total_bytes: while it loads.
    """

    name: str
    state: str
    traits: Traits | None
    error: str | None
    notice: str | None
    loaded_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Unready:
    """Why the server answers no requests now: a word for machines, and what would help."""

    status: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """Everything that an operator may want to know of this moment.

    memory: measured now. limits: every limit on the path, as (source, bytes).
    refaults_per_s, cpu, tokens_per_s: between the last two ticks.
    predicted_bytes: in use and promised. line_bytes: what admission defends.
    step: of the memory ladder, and its effects in words.
    unready: None while requests are answered. models: the default first.
    bottleneck: the resolver's report. history: the last minutes, the newest last.
    """

    memory: MemorySample
    budget_source: str
    limits: Sequence[tuple[str, int]]
    refaults_per_s: float
    cpu: CPULoad
    tokens_per_s: float
    predicted_bytes: int
    line_bytes: int
    step: int
    effects: Sequence[str]
    plan: Plan
    breaker: BreakerSnapshot
    queue_tokens: int
    queue_limit_tokens: int
    drain_tokens_per_s: float
    models: Sequence[ModelStatus]
    unready: Unready | None
    bottleneck: dict[str, Any]
    history: Sequence[Moment]


def show(state: ServerState, telemetry: Telemetry) -> None:
    """Set the gauges, for a scrape."""
    telemetry.engine.show(
        tokens_per_s=state.tokens_per_s,
        parallelism=state.plan.parallelism,
        engine_threads=state.plan.engine_threads,
    )
    telemetry.machine.show(
        used_bytes=state.memory.used_bytes,
        resident_bytes=state.memory.resident_bytes,
        budget_bytes=state.memory.budget_bytes,
        predicted_bytes=state.predicted_bytes,
        pressure_ratio=state.memory.pressure_ratio or 0.0,
        refaults_per_s=state.refaults_per_s,
        oom_kills=state.memory.oom_kills,
        cpu_others_ratio=state.cpu.others_ratio,
        cpu_throttled_ratio=state.cpu.throttled_ratio,
    )
    telemetry.pressure.show_step(state.step)
    telemetry.pressure.show_breaker(state.breaker.state.value)
