"""What the server can do by itself about a bottleneck: bounded, reversible, one thing each.

A remedy changes something and can undo it. Whether it helped is for the resolver to find out; the
parallelism is still the scheduler's to set, which gets a cap.
"""

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from app.encoder.layout import FLOAT_BYTES
from app.encoder.model import EmbeddingModel
from app.errors import EncodeMemoryError
from app.memory import allocator
from app.memory.affinity import ThreadPlacement
from app.serving.bottleneck import Kind
from app.serving.evidence import Evidence
from app.serving.scheduler import Cap, Plan

CAP_SOURCE = "bottleneck"
# A cap for a neighbour who has left holds back for nothing.
CAP_OUTLIVES_S = 20.0
# Processors that others use as much as this are avoided, where there are some as free as that.
TAKEN_RATIO, FREE_RATIO = 0.40, 0.15
# File pages and everything else together: the kernel takes pages back well before the limit.
FILLED_RATIO = 0.95
# The layer that computes and the one that is read ahead.
LAYERS_UNDER_WAY = 2
# Of the engine's thread pool and of the thread that gives it runs; what ONNX Runtime starts is no
# Python thread.
WORKER_NAMES = ("engine", "runs")


class Remedy(Protocol):
    """One thing that may help against one kind of bottleneck.

    outlives_cause_s: how long it is kept after its bottleneck was named last, which may be because
        the cause has gone or because of the remedy; the less it costs, the longer.
    """

    name: str
    kind: Kind
    outlives_cause_s: float

    @property
    def cap(self) -> Cap | None:
        """What the scheduler has to keep while it is applied."""

    async def apply(self, evidence: Evidence) -> str | None:
        """Do it, and say what changed; None, and nothing done, where there is nothing to do."""

    def revert(self) -> None:
        """Undo it."""


class ReleaseMemory:
    """Give back what is free already but held by engine, Python and allocator.

    A model does so by itself only while nobody wants it, and requests that wait for memory do.
    release_model: gives back what the model that ran last needs for runs alone; may block.
    """

    name = "release_memory"
    kind = Kind.MEMORY
    outlives_cause_s = CAP_OUTLIVES_S
    cap = None

    def __init__(self, release_model: Callable[[], None] = lambda: None) -> None:
        self._release_model = release_model

    async def apply(self, evidence: Evidence) -> str | None:
        """Release, collect and trim, in a thread."""
        await asyncio.to_thread(self._release)
        return "free memory given back to the kernel"

    def _release(self) -> None:
        with suppress(EncodeMemoryError):  # even that may find no memory
            self._release_model()
        gc.collect()
        allocator.release()

    def revert(self) -> None:
        """Nothing is held that could be undone."""


class CapParallelism:
    """Let fewer sequences run at once; `limit` says how many, from the evidence and the plan."""

    outlives_cause_s = CAP_OUTLIVES_S

    def __init__(
        self,
        name: str,
        kind: Kind,
        plan: Callable[[], Plan],
        limit: Callable[[Evidence, Plan], int],
        reason: str,
    ) -> None:
        self.name = name
        self.kind = kind
        self.cap: Cap | None = None
        self._plan = plan
        self._limit = limit
        self._reason = reason

    async def apply(self, evidence: Evidence) -> str | None:
        """Cap, where that is less than runs now."""
        plan = self._plan()
        limit = self._limit(evidence, plan)
        if not 1 <= limit < plan.parallelism:
            return None
        self.cap = Cap(CAP_SOURCE, limit, self._reason)
        return f"parallelism {plan.parallelism} -> {limit}"

    def revert(self) -> None:
        """Ask for the cap no more; the scheduler lifts it in its own time."""
        self.cap = None


def smaller_runs(plan: Callable[[], Plan]) -> CapParallelism:
    """Half the parallelism: runs, packs and threads shrink with it, and so do activations."""
    return CapParallelism(
        "smaller_runs", Kind.MEMORY, plan, lambda _, plan: plan.parallelism // 2, "memory is short"
    )


def fewer_threads(plan: Callable[[], Plan]) -> CapParallelism:
    """As many threads as others and the quota leave processors for.

    Threads wait for each other at each layer's end: one that has to share its processor holds
    up all.
    """

    def limit(evidence: Evidence, plan: Plan) -> int:
        left = 1 - evidence.others_ratio - evidence.throttled_ratio
        n_threads = max(1, round(evidence.cores * left))
        return n_threads if n_threads < plan.engine_threads else 0

    return CapParallelism(
        "fewer_threads", Kind.CPU, plan, limit, "others use some of our processors"
    )


class AvoidTakenCores:
    """Keep the engine's threads off the processors that others use, one thread for each other."""

    name = "avoid_taken_cores"
    kind = Kind.CPU
    outlives_cause_s = CAP_OUTLIVES_S

    def __init__(self, placement: ThreadPlacement | None = None) -> None:
        self.cap: Cap | None = None
        self._placement = placement or ThreadPlacement(
            lambda thread_name: thread_name.startswith(WORKER_NAMES)
        )

    async def apply(self, evidence: Evidence) -> str | None:
        """Move, where some processors are taken and others free."""
        shares = evidence.others_by_core
        taken = sorted(core for core, share in shares.items() if share >= TAKEN_RATIO)
        free = sorted(core for core, share in shares.items() if share <= FREE_RATIO)
        if not taken or not free:
            return None
        rest = sorted(shares.keys() - taken)
        if not self._placement.move(rest):
            return None
        self.cap = Cap(CAP_SOURCE, len(rest), "others use some of our processors")
        numbers = ", ".join(map(str, rest))
        return f"engine threads on processors {numbers} alone"

    def revert(self) -> None:
        """Let them run everywhere again."""
        self._placement.restore()
        self.cap = None


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """What a model's weights take, and how much of it each of its layers."""

    weights_bytes: int
    layer_bytes: int
    n_layers: int

    def fitting_layers(self, room_bytes: int) -> int:
        """How many layers may stay beside those under way."""
        n_layers = room_bytes // max(1, self.layer_bytes)
        if n_layers >= self.n_layers:
            return self.n_layers
        return max(0, n_layers - LAYERS_UNDER_WAY)


class PageKeeping:
    """Owns how pages of weights are treated: as the rule says, or as many layers kept as fit.

    rule: whether all pages of so many bytes of weights may stay. The engine's thread asks before
    each run.
    """

    def __init__(self, rule: Callable[[int], bool]) -> None:
        self._rule = rule
        self._room_bytes: int | None = None  # None: the rule decides
        self._last_model: Callable[[], EmbeddingModel | None] = lambda: None

    @property
    def sizes(self) -> WeightSizes | None:
        """Of the model that ran last, while it is open."""
        model = self._last_model()
        return None if model is None else _sizes(model)

    @property
    def follows_rule(self) -> bool:
        """Whether nothing else has been decided."""
        return self._room_bytes is None

    def weights_stay(self, model: EmbeddingModel) -> bool:
        """Whether all pages stay mapped, and none is read ahead."""
        self._last_model = weakref.ref(model)
        return self.follows_rule and self._rule(model.weights_bytes)

    def kept_layers(self, model: EmbeddingModel) -> int:
        """How many layers stay in memory while the others' pages are dropped."""
        room_bytes = self._room_bytes
        return 0 if room_bytes is None else _sizes(model).fitting_layers(room_bytes)

    def release_model(self) -> None:
        """Make the model that ran last give back what only runs need; waits for one under way."""
        model = self._last_model()
        if model is not None:
            model.release_memory()

    def keep_layers(self, room_bytes: int) -> None:
        """Keep the layers that fit so many bytes."""
        self._room_bytes = room_bytes

    def follow_rule(self) -> None:
        """Let the rule decide again."""
        self._room_bytes = None


class KeepLayers:
    """Keep as many layers in memory as fit, read the others ahead, give those back at once.

    Layers are used in turn, and the kernel gives up what was used longest ago: where some do not
    fit, by the time that a layer's turn comes it is gone, and all are read in each pass.
    """

    name = "keep_layers"
    kind = Kind.DISK
    outlives_cause_s = 600.0
    cap = None

    def __init__(self, pages: PageKeeping) -> None:
        self._pages = pages

    async def apply(self, evidence: Evidence) -> str | None:
        """Keep what fits beside used memory."""
        sizes = self._pages.sizes
        if sizes is None or evidence.is_loading or not self._pages.follows_rule:
            return None
        room_bytes = round(FILLED_RATIO * evidence.budget_bytes) - evidence.used_bytes
        n_kept = sizes.fitting_layers(room_bytes)
        if n_kept == 0:
            return None
        self._pages.keep_layers(room_bytes)
        return f"{n_kept} of {sizes.n_layers} layers stay in memory, the others are read ahead"

    def revert(self) -> None:
        """Treat pages as before."""
        self._pages.follow_rule()


def _sizes(model: EmbeddingModel) -> WeightSizes:
    architecture = model.traits.architecture
    table_bytes = FLOAT_BYTES * architecture.vocabulary * architecture.hidden
    layers_bytes = max(0, model.weights_bytes - table_bytes)
    return WeightSizes(
        model.weights_bytes, layers_bytes // architecture.n_layers, architecture.n_layers
    )
