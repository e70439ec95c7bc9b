"""The made-up half of a simulation: a clock that jumps, a machine, and an engine in its time.

The engine stands in for the executor and its thread: one queue of texts, one run at a time, chosen
by the executor's own rule. What it runs takes as long as its tokens over a rate.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from app.encoder.architecture import Architecture
from app.encoder.layout import FLOAT_BYTES, wave_bytes
from app.serving.admission import Admission, Demand, held_bytes
from app.serving.runs import MOST_TEXTS, WINDOW_TEXTS, RunLimits, n_texts_of_run
from app.serving.scheduler import FULL_PARALLELISM, Plan

# As the serving core has it; a test holds them equal, so that this need not import the encoder.
RESIDENT_WEIGHTS_RATIO = 0.5


@dataclass(frozen=True)
class SimulatedMachine:
    """What a trace runs on.

    floor_bytes: memory at rest. tokens_per_s: of the engine with all its threads. token_limit:
    longer texts are cut to it. The last three are the server's settings of these names.
    """

    limit_bytes: int
    architecture: Architecture
    token_limit: int
    floor_bytes: int = 70 << 20
    tokens_per_s: float = 300.0
    n_threads: int = 2
    queue_timeout_s: float = 5.0
    queue_s: float = 30.0
    recovery_timeout_s: float = 15.0

    @property
    def weights_stay(self) -> bool:
        """Whether the weights may stay resident, so that no run has to drop their pages."""
        shape = self.architecture
        n_values = shape.vocabulary * shape.hidden + shape.n_layers * shape.layer_parameters
        return FLOAT_BYTES * n_values <= RESIDENT_WEIGHTS_RATIO * self.limit_bytes

    def demand(self, lengths: Sequence[int]) -> Demand:
        """What the server takes a request of texts of so many tokens for."""
        hidden = self.architecture.hidden
        return Demand(
            n_tokens=sum(lengths),
            held_bytes=held_bytes(lengths, hidden=hidden, dimensions=hidden),
            run_bytes=wave_bytes(self.architecture, [max(lengths)], n_threads=self.n_threads),
            waiting_tokens=sum(lengths[:WINDOW_TEXTS]),
        )

    def run_bytes(self, lengths: Sequence[int], limits: RunLimits) -> int:
        """What the server takes a run of such texts for."""
        return wave_bytes(
            self.architecture,
            lengths,
            n_threads=limits.plan.engine_threads,
            pack_tokens=limits.pack_tokens,
        )

    def run_s(self, n_tokens: int, plan: Plan) -> float:
        """How long a run takes with the threads that the plan gives it."""
        most_threads = min(self.n_threads, FULL_PARALLELISM)
        return n_tokens / self.tokens_per_s * most_threads / plan.engine_threads


@dataclass
class Timeline:
    """Owns the time, and what is still to happen."""

    now_s: float = 0.0
    _actions: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _n_planned: int = 0

    def __call__(self) -> float:
        """Seconds since the start."""
        return self.now_s

    def plan(self, at_s: float, action: Callable[[], None]) -> None:
        """Let something happen; actions of one moment go in the order they were planned."""
        heapq.heappush(self._actions, (at_s, self._n_planned, action))
        self._n_planned += 1

    def step(self) -> None:
        """Go on to the next action."""
        self.now_s, _, action = heapq.heappop(self._actions)
        action()


Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Run(Generic[Owner]):
    """Texts under way: whose each is, and its tokens."""

    owners: Sequence[Owner]
    lengths: Sequence[int]
    n_bytes: int
    began_s: float
    ends_s: float


class SimulatedEngine(Generic[Owner]):
    """Owns the queue of texts, which belong to some owner, and the run under way.

    limits: what the engine may do now. on_run: told of a run that has ended, after the next one has
    begun, as the engine's thread does not wait for the event loop. on_refused: told the owner of a
    text that found no memory at the head of the queue for the length of the timeout.
    """

    def __init__(
        self,
        machine: SimulatedMachine,
        clock: Timeline,
        admission: Admission,
        *,
        limits: Callable[[], RunLimits],
        on_run: Callable[[Run[Owner]], None],
        on_refused: Callable[[Owner], None],
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._admission = admission
        self._limits = limits
        self._on_run = on_run
        self._on_refused = on_refused
        self._queue: deque[tuple[Owner, int]] = deque()
        self._starvation: object | None = None  # while the head of the queue finds no room
        self.run: Run[Owner] | None = None

    @property
    def used_bytes(self) -> int:
        """What the run under way takes."""
        return self.run.n_bytes if self.run else 0

    def put(self, owner: Owner, n_tokens: int) -> None:
        """Queue a text; `start` lets it run."""
        self._queue.append((owner, n_tokens))

    def drop(self, owner: Owner) -> None:
        """Take the owner's texts out of the queue; those under way run to their end."""
        self._queue = deque(text for text in self._queue if text[0] is not owner)

    def start(self) -> None:
        """Begin a run if none is under way and there is room for one."""
        if self.run is not None:
            return
        if not self._queue:
            self._starvation = None
            return
        limits = self._limits()
        n_texts = 0 if limits.is_paused else self._n_texts(limits)
        if n_texts:
            self._starvation = None
            self._begin(n_texts, limits)
        elif self._starvation is None:
            self._starvation = starvation = object()
            timeout_s = self._clock.now_s + self._machine.queue_timeout_s
            self._clock.plan(timeout_s, partial(self._refuse, starvation))

    def _n_texts(self, limits: RunLimits) -> int:
        lengths = [n_tokens for _, n_tokens in islice(self._queue, MOST_TEXTS)]
        predict = partial(self._machine.run_bytes, limits=limits)
        drops_pages = limits.plan.step >= 2 or not self._machine.weights_stay
        return n_texts_of_run(lengths, limits, predict, drops_pages=drops_pages)

    def _begin(self, n_texts: int, limits: RunLimits) -> None:
        texts = [self._queue.popleft() for _ in range(n_texts)]
        owners, lengths = zip(*texts, strict=True)
        n_bytes = self._machine.run_bytes(lengths, limits)
        seconds = self._machine.run_s(sum(lengths), limits.plan)
        now_s = self._clock.now_s
        self.run = Run(owners, lengths, n_bytes, now_s, now_s + seconds)
        self._admission.begin_run(n_bytes)
        self._clock.plan(self.run.ends_s, self._end)

    def _end(self) -> None:
        run, self.run = self.run, None
        if run is not None:
            self._admission.note_run(sum(run.lengths), run.ends_s - run.began_s)
            self.start()
            self._on_run(run)
            self.start()

    def _refuse(self, starvation: object) -> None:
        if starvation is self._starvation and self._queue:
            self._starvation = None
            self._on_refused(self._queue[0][0])
            self.start()
