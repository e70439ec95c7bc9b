"""Decide what becomes of a request, of a run, and of the server's parallelism, in one place.

Pure: no I/O, no thread, no waiting; measurements and the clock come in. The live server and
`plimsoll simulate` drive the same object with the same calls. Every request is checked in this
order, as far as its size is known:

    too large     more than an idle server could give        413, and no way to wait for it
    queue full    more tokens run before it, of its class
                  and in the other's share, than drain in
                  good time                                   429
    breaker       memory failed or ran high                   the fallback, or 503
    room          no room below the memory line now           a bounded wait, then as above

The line lies at 0.70 of the budget (lines.py): no predicted peak above it is let in. Background
work leaves some of the room to others, and finds none while one of them waits for it.
"""

from collections.abc import Callable, Sequence
from math import inf

from plimsoll.policy import lines
from plimsoll.policy.admission import Admission, Permit
from plimsoll.policy.asked import NOTHING_ASKED, Asked
from plimsoll.policy.breaker import (
    BreakerLimits,
    BreakerState,
    MemoryCircuitBreaker,
    Transition,
    Verdict,
)
from plimsoll.policy.costs import NOTHING, Demand, door_demand
from plimsoll.policy.decision import Decision, Outcome
from plimsoll.policy.engine_work import EngineWork
from plimsoll.policy.priority import Priority
from plimsoll.policy.reading import Reading
from plimsoll.policy.runs import (
    LIVE_S,
    EngineTotals,
    RunEnded,
    RunLimits,
    live_layer_tokens,
    short_run_tokens,
)
from plimsoll.policy.scheduler import AdaptiveScheduler, Observation, Plan
from plimsoll.policy.waiting import WaitingPermits


class Governor:
    """Owns admission, breaker and scheduler, and who waits for room. Lives on the event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        budget_bytes: int,
        cores: float,
        queue_s: float = 30.0,
        recovery_timeout_s: float = 15.0,
        on_transition: Callable[[Transition], None] = lambda transition: None,
    ) -> None:
        """`cores`: at the start. `queue_s`: work that may wait, in seconds of the drain rate.

        recovery_timeout_s: how long the breaker stays open. on_transition: told its changes.
        """
        self._clock = clock
        self._budget_bytes = budget_bytes
        self.admission = Admission(clock, budget_bytes=budget_bytes, queue_s=queue_s)
        self.breaker = MemoryCircuitBreaker(
            clock, on_transition, limits=BreakerLimits(recovery_timeout_s=recovery_timeout_s)
        )
        self._scheduler = AdaptiveScheduler(clock, cores=cores)
        self._work = EngineWork(clock)
        self._waiting = WaitingPermits()
        self._live_s = -inf  # when interactive texts came last
        self._is_live = False  # they came lately, as the last observation has it
        self._asked = NOTHING_ASKED
        self._is_hard = False

    @property
    def plan(self) -> Plan:
        """How many sequences may run at once, and why."""
        return self._scheduler.plan

    @property
    def waiting(self) -> Sequence[Permit]:
        """Permits of requests that wait for room, background work last, else as they came."""
        return self._waiting.in_turn

    @property
    def step(self) -> int:
        """Step of the memory ladder, 0 to 4."""
        if self.breaker.state is not BreakerState.CLOSED:
            return lines.BREAKER_STEP
        return lines.WAITING_STEP if self._waiting else self.plan.step

    @property
    def totals(self) -> EngineTotals:
        """The engine's work up to now."""
        return self._work.totals

    @property
    def tokens_per_s(self) -> float:
        """Tokens that have run, between the last two observations."""
        return self._work.tokens_per_s

    def measure(self, used_bytes: int, budget_bytes: int) -> None:
        """Take a fresh measurement of memory, for the decisions that follow."""
        self._budget_bytes = budget_bytes
        self.admission.observe(used_bytes, budget_bytes)

    def measure_rest_anew(self, used_bytes: int) -> None:
        """A model has opened: memory at rest is what is measured from now on."""
        self.admission.measure_rest_anew(used_bytes)

    def observe(self, reading: Reading, asked: Asked = NOTHING_ASKED) -> Plan:
        """Decide anew, once a second; `asked`: by what is being tried against a bottleneck."""
        self._asked = asked
        self._is_live = self._clock() - self._live_s < LIVE_S
        self.measure(reading.used_bytes, reading.budget_bytes)
        self._is_hard = reading.is_hard
        self.breaker.observe(reading.used_ratio, floor_ratio=self.admission.rest_ratio)
        is_asked = self.admission.backlog.queue_tokens > 0
        return self._scheduler.next(
            Observation(
                utilization_ratio=reading.used_ratio,
                cores=reading.cores,
                others_ratio=reading.others_ratio,
                throttled_ratio=reading.throttled_ratio,
                tokens_per_s=self._work.observe(),
                target_tokens_per_s=self.admission.backlog.tokens_per_s if is_asked else 0.0,
                working_set_ratio=reading.working_set_bytes / reading.budget_bytes,
                pressure_ratio=reading.pressure_ratio,
                refaults_per_s=reading.refaults_per_s,
                io_pressure_ratio=reading.io_pressure_ratio,
            ),
            asked.caps,
            most_threads=asked.most_threads,
        )

    def explain(
        self, demand: Demand, permit: Permit | None = None, *, asks_breaker: bool = True
    ) -> Decision:
        """Say what would become of a request now; changes nothing. permit: what it has already."""
        return self._decide(permit or Permit(), demand, asks_breaker=asks_breaker)

    def enter(
        self,
        permit: Permit,
        *,
        asks_breaker: bool,
        priority: Priority = Priority.INTERACTIVE,
        size: int = 0,
    ) -> Decision:
        """Ask for a place in the queue, and the breaker, before any work is done for a request.

        priority: its class, as far as it is known: what is bulk by its size may be found to be so
        only later, and is asked again then.
        asks_breaker: its texts go through the engine. The breaker's leave ends with `succeeded`,
        `failed` or `leave`.
        size: bytes of its body or characters of its texts, which are the same when it comes back;
        the first one that is said counts. Without it a refusal is not remembered.
        """
        asks_breaker = asks_breaker and permit.admittance is None  # it has its leave
        self.admission.know_again(permit, size)
        door = door_demand(size, priority)
        decision = self._decide(permit, door, asks_breaker=asks_breaker)
        self._expect_back(permit, door, decision)
        if decision.outcome is Outcome.ADMIT and asks_breaker:
            permit.admittance = self.breaker.admit()
            if priority is Priority.INTERACTIVE:
                self._live_s, self._is_live = self._clock(), True
        return decision

    def renew(self, permit: Permit, demand: Demand, *, may_wait: bool = True) -> Decision:
        """Let a permit stand for `demand`, instead of what it stood for, where there is room.

        Where the outcome is not ADMIT it keeps what it had. With WAIT it counts as waiting, until
        it is renewed with another outcome, gives up or leaves.
        """
        decision = self._decide(permit, demand, may_wait=may_wait)
        if decision.outcome is Outcome.WAIT:
            self._waiting.put(permit, demand)
            return decision
        self._waiting.take(permit)
        if decision.outcome is Outcome.ADMIT:
            self.admission.reserve(permit, demand)
        self._expect_back(permit, demand, decision)
        return decision

    def keep(self, permit: Permit, n_bytes: int, *, yields: bool = False) -> Decision:
        """Let a permit hold more bytes beside its demand: a body, what was parsed from it.

        Where the outcome is not ADMIT it keeps what it had.
        """
        held_bytes = n_bytes - permit.kept_bytes + permit.demand.held_bytes
        wanted = Demand(0, held_bytes, yields=yields)
        decision = self._decide(permit, wanted, may_wait=False)
        if decision.outcome is Outcome.ADMIT:
            self.admission.keep(permit, n_bytes)
        return decision

    def shrink(self, permit: Permit, n_bytes: int) -> None:
        """Let a permit hold no more than so many bytes beside its demand."""
        if n_bytes < permit.kept_bytes:
            self.admission.keep(permit, n_bytes)

    def settle(self, permit: Permit) -> None:
        """Let what a permit's demand holds stay held; the next demand comes on top of it."""
        self.admission.keep(permit, permit.held_bytes)
        self.admission.reserve(permit, NOTHING)

    def give_up(self, permit: Permit) -> None:
        """End a request's wait for room."""
        self._waiting.take(permit)

    def succeeded(self, permit: Permit) -> None:
        """Its vectors are computed: tell the breaker."""
        if permit.admittance is not None:
            self.breaker.record_success(permit.admittance)

    def failed(self, permit: Permit, cause: Exception | None = None) -> None:
        """It found no memory, however small the run: tell the breaker, once for each cause."""
        self.breaker.record_failure(permit.admittance, cause)

    def drop(self, permit: Permit) -> bool:
        """End a request's demand, or its attempt at the engine; what it keeps beside stays held.

        Returns whether that has made room for others.
        """
        self.give_up(permit)
        makes_room = permit.demand is not NOTHING
        if makes_room:
            self.admission.reserve(permit, NOTHING)
        if permit.admittance is not None:
            self.breaker.probe_dropped(permit.admittance)
            permit.admittance = None
        return makes_room

    def leave(self, permit: Permit) -> bool:
        """End a request; once is enough, and more often does nothing. Returns as `drop` does."""
        makes_room = self.drop(permit) or permit.kept_bytes > 0
        self.admission.release(permit)
        return makes_room

    def run_began(self, n_bytes: int) -> None:
        """A run that is predicted to take so much has started."""
        self.admission.begin_run(n_bytes)
        self._work.run_began()

    def run_takes(self, n_bytes: int) -> None:
        """The run under way takes so much now, with what was let in between its layers."""
        self.admission.begin_run(n_bytes)

    def run_ended(self, run: RunEnded) -> None:
        """It has ended."""
        self.admission.end_run(run.n_tokens, run.seconds)
        self._work.run_ended(run)

    def limits(self) -> RunLimits:
        """What the engine may do now."""
        return RunLimits(
            self.plan,
            self.admission.room_for_run_bytes(),
            is_paused=self.breaker.state is BreakerState.OPEN,
            resident_bytes=round(lines.RESIDENT_WEIGHTS_RATIO * self._budget_bytes),
            kept_bytes=self._asked.kept_bytes,
            short_tokens=short_run_tokens(self.admission.backlog.tokens_per_s),
            is_hard=self._is_hard,
            own_layer_tokens=self._own_layer_tokens,
        )

    @property
    def _own_layer_tokens(self) -> int:
        """Of a layer of own bulk: interactive texts that come meanwhile wait for its end."""
        tokens_of = live_layer_tokens if self._is_live else short_run_tokens
        return tokens_of(self.admission.backlog.tokens_per_s)

    def _decide(
        self,
        permit: Permit,
        demand: Demand,
        *,
        asks_breaker: bool = False,
        may_wait: bool = True,
    ) -> Decision:
        admission = self.admission
        peak_bytes = permit.kept_bytes + demand.peak_bytes
        largest_bytes = admission.largest_bytes(demand)
        # What it holds already is in the numbers of those that hold, and stays there.
        others_wait = admission.backlog.queue_tokens > permit.waiting_tokens
        run_ratio = self._asked.run_ratio if others_wait and demand.n_tokens else 0.0
        headroom_bytes = permit.held_bytes + admission.headroom_bytes(
            demand, run_ratio=run_ratio, kept_bytes=permit.kept_bytes
        )
        asks_queue = demand.n_tokens > 0 and not permit.tokens_left
        if peak_bytes > largest_bytes:
            outcome = Outcome.TOO_LARGE
        elif asks_queue and not admission.backlog.has_place(demand, permit.place, permit.client):
            outcome = Outcome.QUEUE_FULL
        elif asks_breaker and self.breaker.verdict is Verdict.REFUSED:
            outcome = Outcome.BREAKER_OPEN
        elif peak_bytes > headroom_bytes or self._waiting.come_before(demand):
            waits = may_wait and self._waiting.has_place(permit)
            outcome = Outcome.WAIT if waits else Outcome.NO_ROOM
        else:
            outcome = Outcome.ADMIT
        is_breaker = outcome is Outcome.BREAKER_OPEN
        breaker_retry_s = self.breaker.snapshot().retry_after_s if is_breaker else None
        is_full = outcome is Outcome.QUEUE_FULL
        room_s = admission.backlog.room_s(demand, permit.place) if is_full else 0.0
        keeps_place = is_full and admission.keeps_place(permit)
        return Decision(
            outcome=outcome,
            peak_bytes=peak_bytes,
            headroom_bytes=headroom_bytes,
            largest_bytes=largest_bytes,
            predicted_s=admission.backlog.predicted_s(demand),
            room_s=room_s,
            retry_after_s=breaker_retry_s
            or admission.backlog.retry_after_s(
                demand, room_s, is_first=permit.place is None, keeps_place=keeps_place
            ),
            keeps_place=keeps_place,
        )

    def _expect_back(self, permit: Permit, demand: Demand, decision: Decision) -> None:
        """Keep a place for a request that is refused because the queue is full."""
        if decision.outcome is Outcome.QUEUE_FULL:
            self.admission.expect_back(
                permit, demand, room_s=decision.room_s, retry_after_s=decision.retry_after_s
            )
