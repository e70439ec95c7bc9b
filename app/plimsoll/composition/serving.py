"""Put the serving parts together: who tells whom what."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from plimsoll.models.pool import ModelPool
from plimsoll.models.slot import SlotEvent
from plimsoll.policy import lines
from plimsoll.policy.breaker import Transition
from plimsoll.policy.governor import Governor
from plimsoll.serving.control_loop import ControlLoop, Monitors
from plimsoll.serving.core import Drain, ServingCore
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.executor import RunExecutor
from plimsoll.serving.gate import AdmissionGate
from plimsoll.serving.ranking import RankingService
from plimsoll.serving.reclaim import Reclaim
from plimsoll.serving.tokenizing import TokenService
from plimsoll.serving.vector_cache import CachedEncoder, VectorCache
from plimsoll.settings import Settings
from plimsoll.telemetry.metrics import Telemetry
from plimsoll.tuning.remedies import (
    AvoidTakenCores,
    FewerThreads,
    KeepLayers,
    RoomForRuns,
    YieldToConversion,
)
from plimsoll.tuning.resolver import BottleneckResolver

log = logging.getLogger(__name__)


def make_core(
    settings: Settings,
    models: ModelPool,
    monitors: Monitors,
    telemetry: Telemetry,
    drain: Drain | None = None,
) -> ServingCore:
    """What serves these models under these settings."""
    return build_core(
        models,
        monitors,
        telemetry,
        queue_s=settings.queue_s,
        queue_timeout_s=settings.queue_timeout_s,
        recovery_timeout_s=settings.recovery_timeout_s,
        cache_bytes=settings.vector_cache or 0,
        drain=drain,
    )


def build_core(
    models: ModelPool,
    monitors: Monitors,
    telemetry: Telemetry,
    *,
    queue_s: float = 30.0,
    queue_timeout_s: float = 5.0,
    recovery_timeout_s: float = 15.0,
    cache_bytes: int = 0,
    drain: Drain | None = None,
    clock: Callable[[], float] = monotonic,
) -> ServingCore:
    """Put the serving parts together, from plain values.

    queue_s: work that may wait, in seconds. queue_timeout_s: how long a request waits for memory.
    recovery_timeout_s: how long the breaker stays open. cache_bytes: of vectors; 0: no cache.
    """

    for slot in models.slots:
        telemetry.requests.serve(slot.name)
        telemetry.models.serve(slot.name)

    def note_transition(transition: Transition) -> None:
        telemetry.pressure.breaker_changed(transition.later.value)
        log.warning(
            "memory breaker %s -> %s: %s",
            transition.earlier.value, transition.later.value, transition.reason,
        )  # fmt: skip

    governor = Governor(
        clock,
        budget_bytes=monitors.memory.budget.budget_bytes,
        cores=monitors.cpu.sample().cores,
        queue_s=queue_s,
        recovery_timeout_s=recovery_timeout_s,
        on_transition=note_transition,
    )
    executor = RunExecutor(
        telemetry.engine,
        telemetry.requests,
        telemetry.pressure,
        governor.limits(),
        room_timeout_s=queue_timeout_s,
    )
    gate = AdmissionGate(
        governor,
        monitors.memory.usage,
        executor.set_limits,
        queue_timeout_s=queue_timeout_s,
    )
    models.listen(lambda slot, event: _note_model(gate, event))
    cache = _make_cache(telemetry, monitors.memory.budget.budget_bytes, cache_bytes)
    reclaim = Reclaim(models, executor, telemetry.pressure, cache)
    resolver = BottleneckResolver(
        clock,
        telemetry.bottleneck,
        [RoomForRuns(), YieldToConversion(), KeepLayers(), AvoidTakenCores(), FewerThreads()],
    )
    texts_thread = ThreadPoolExecutor(1, thread_name_prefix="texts")
    words_thread = ThreadPoolExecutor(1, thread_name_prefix="words")
    service = EmbeddingService(
        models,
        CachedEncoder(executor, cache, telemetry.engine) if cache is not None else executor,
        gate,
        telemetry.requests,
        telemetry.pressure,
        texts_thread,
        words_thread,
    )
    return ServingCore(
        models=models,
        memory=monitors.memory,
        governor=governor,
        gate=gate,
        executor=executor,
        reclaim=reclaim,
        resolver=resolver,
        control_loop=ControlLoop(monitors, gate, executor, reclaim, resolver, clock=clock),
        threads=(texts_thread, words_thread),
        service=service,
        ranking=RankingService(service, telemetry.pressure, words_thread),
        tokens=TokenService(models, texts_thread),
        drain=drain or Drain(),
    )


def _make_cache(telemetry: Telemetry, budget_bytes: int, cache_bytes: int) -> VectorCache | None:
    if not cache_bytes:
        return None
    most_bytes = lines.cache_bytes(cache_bytes, budget_bytes)
    if cache_bytes > most_bytes:
        log.warning(
            "PLIMSOLL_VECTOR_CACHE asks for %d MiB; it gets %d, an eighth of the memory budget",
            cache_bytes >> 20, most_bytes >> 20,
        )  # fmt: skip
    return VectorCache(telemetry.engine, most_bytes=most_bytes)


def _note_model(gate: AdmissionGate, event: SlotEvent) -> None:
    if event is SlotEvent.OPENED:
        gate.measure_rest_anew()
