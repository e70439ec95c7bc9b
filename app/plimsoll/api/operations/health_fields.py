"""What /health and the probes answer, and how it is made of the server's state.

The records are the schema too: no field can be answered that OpenAPI does not show.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from plimsoll.encoder.quantization.gate import Int8Figures
from plimsoll.machine.cpu import CPULoad
from plimsoll.machine.memory import Scope
from plimsoll.policy.breaker import BreakerSnapshot
from plimsoll.policy.scheduler import Plan
from plimsoll.serving.state import ModelStatus, ServerState
from plimsoll.tuning.bottleneck import Kind


@dataclass(frozen=True, slots=True)
class Live:
    """The process answers."""

    status: Literal["live"] = "live"


@dataclass(frozen=True, slots=True)
class Ready:
    """Requests to the default model are answered."""

    status: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class NotReady:
    """Requests to the default model are not answered now."""

    status: Annotated[str, Field(description="A word for programs.")]
    reason: Annotated[str, Field(description="What would help.")]


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """One served model; what is known of it only once it has been open is null until then."""

    name: str
    state: str
    fingerprint: str | None
    dimensions: int | None
    token_limit: int | None
    compute: str | None
    compute_reason: Annotated[str | None, Field(description="Why `auto` has taken that.")]
    int8: Int8Figures | None
    error: Annotated[str | None, Field(description="Why it would not open.")]
    notice: Annotated[
        str | None,
        Field(description="What has become of its files on disk while it is served."),
    ]
    loaded_bytes: Annotated[int, Field(description="Of `total_bytes`, while it loads.")]
    total_bytes: int


@dataclass(frozen=True, slots=True)
class LimitFields:
    """One of the limits on memory."""

    source: str
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryHealth:
    """Memory now, and what is promised of it."""

    used_bytes: Annotated[int, Field(description="What the kernel cannot take back at once.")]
    resident_bytes: Annotated[int, Field(description="Used, and mapped file pages.")]
    working_set_bytes: int
    budget_bytes: int
    utilization_ratio: Annotated[float, Field(description="Used over budget.")]
    budget_source: str
    scope: Scope
    limits: list[LimitFields]
    pressure_ratio: Annotated[
        float | None, Field(description="Stalls for memory (PSI); null where it is not measured.")
    ]
    refaults_per_s: float
    oom_kills: int
    predicted_bytes: Annotated[int, Field(description="In use and promised to requests.")]
    line_bytes: Annotated[int, Field(description="The line that admission defends.")]


@dataclass(frozen=True, slots=True)
class BottleneckName:
    """What limits throughput, in short; GET /bottleneck says more."""

    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class QueueHealth:
    """Tokens that wait for the engine."""

    tokens: int
    limit_tokens: int
    tokens_per_s: Annotated[float, Field(description="How fast they drain.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """State of the server, its models and its memory."""

    status: Annotated[str, Field(description="ok, or why requests are not answered.")]
    reason: str | None
    version: str
    uptime_s: float
    model: Annotated[ModelHealth, Field(description="The default model.")]
    models: list[ModelHealth]
    memory: MemoryHealth
    cpu: CPULoad
    ladder_step: Annotated[int, Field(description="Of the memory ladder, 0 to 4.")]
    ladder_effects: list[str]
    breaker: BreakerSnapshot
    plan: Plan
    bottleneck: BottleneckName
    queue: QueueHealth


def health_of(state: ServerState, *, version: str, uptime_s: float) -> Health:
    """What /health says of this state."""
    models = [_model(model) for model in state.models]
    found = state.bottleneck
    return Health(
        status=state.unready.status if state.unready else "ok",
        reason=state.unready.message if state.unready else None,
        version=version,
        uptime_s=round(uptime_s, 3),
        model=models[0],
        models=models,
        memory=_memory(state),
        cpu=state.cpu,
        ladder_step=state.step,
        ladder_effects=list(state.effects),
        breaker=state.breaker,
        plan=state.plan,
        bottleneck=BottleneckName(Kind(found["kind"]), ", ".join(found["reasons"])),
        queue=QueueHealth(
            tokens=state.queue_tokens,
            limit_tokens=state.queue_limit_tokens,
            tokens_per_s=round(state.drain_tokens_per_s, 1),
        ),
    )


def _memory(state: ServerState) -> MemoryHealth:
    memory = state.memory
    return MemoryHealth(
        used_bytes=memory.used_bytes,
        resident_bytes=memory.resident_bytes,
        working_set_bytes=memory.working_set_bytes,
        budget_bytes=memory.budget_bytes,
        utilization_ratio=round(memory.utilization_ratio, 4),
        budget_source=state.budget_source,
        scope=memory.scope,
        limits=[LimitFields(source, limit_bytes) for source, limit_bytes in state.limits],
        pressure_ratio=memory.pressure_ratio,
        refaults_per_s=round(state.refaults_per_s, 1),
        oom_kills=memory.oom_kills,
        predicted_bytes=state.predicted_bytes,
        line_bytes=state.line_bytes,
    )


def _model(model: ModelStatus) -> ModelHealth:
    traits = model.traits
    return ModelHealth(
        name=model.name,
        state=model.state,
        fingerprint=traits.fingerprint() if traits else None,
        dimensions=traits.dimensions if traits else None,
        token_limit=traits.token_limit if traits else None,
        compute=traits.compute if traits else None,
        compute_reason=traits.compute_reason if traits else None,
        int8=traits.codes.choice.figures() if traits and traits.codes else None,
        error=model.error,
        notice=model.notice,
        loaded_bytes=model.loaded_bytes,
        total_bytes=model.total_bytes,
    )
