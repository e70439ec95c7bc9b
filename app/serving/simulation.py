"""Replay a trace of requests through the code that decides, on a clock that jumps between events.

Pure and deterministic: no thread, no file, no measurement. Admission, breaker, scheduler and the
choice of runs are the server's own, asked in the server's order. Memory is what is predicted:

    used = floor + extra + held by admitted requests + the run under way

So it tells what the rules make of a load, not whether predictions are true. Bodies, tokenizing and
the fallback take no time; every client can do with the fallback.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from app.memory.breaker import (
    Admittance,
    BreakerLimits,
    BreakerState,
    MemoryCircuitBreaker,
    Transition,
    Verdict,
)
from app.serving.admission import (
    BATCH_TEXTS,
    Admission,
    Demand,
    Outcome,
    Ticket,
    sparse_demand,
)
from app.serving.runs import WINDOW_TEXTS, RunLimits
from app.serving.scheduler import AdaptiveScheduler, Observation
from app.serving.simulation_engine import Run, SimulatedEngine, SimulatedMachine, Timeline
from app.serving.simulation_report import Fate, RequestRecord, Second, SimulationReport
from app.serving.simulation_trace import Arrival, ExtraMemory, MemoryFailure, TraceEvent

PERIOD_S = 1.0
# After the last event of a trace; what has no answer by then is reported as unfinished.
MOST_TAIL_S = 3600.0
# English words, with what stands between them, over their word pieces.
CHARACTERS_PER_TOKEN = 5


def simulate(trace: Iterable[TraceEvent], machine: SimulatedMachine) -> SimulationReport:
    """Say what would become of every request of `trace`, whose events may come in any order."""
    return _Server(machine).replay(sorted(trace, key=lambda event: event.at_s))


@dataclass(eq=False)
class _Request:
    arrival: Arrival
    lengths: Sequence[int]
    demand: Demand
    admittance: Admittance
    ticket: Ticket | None = None
    n_queued: int = 0
    n_done: int = 0
    wait_s: float | None = None
    record: RequestRecord | None = None  # from its end on


class _Server:
    """Owns everything that changes in the course of one simulation."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._clock = Timeline()
        self._admission = Admission(
            self._clock, budget_bytes=machine.limit_bytes, queue_s=machine.queue_s
        )
        self._transitions: list[Transition] = []
        self._breaker = MemoryCircuitBreaker(
            self._clock,
            self._note_transition,
            limits=BreakerLimits(recovery_timeout_s=machine.recovery_timeout_s),
        )
        self._scheduler = AdaptiveScheduler(self._clock, cores=machine.n_threads)
        self._engine: SimulatedEngine[_Request] = SimulatedEngine(
            machine,
            self._clock,
            self._admission,
            limits=self._limits,
            on_run=self._deliver,
            on_refused=partial(self._fall_back, reason="memory_pressure"),
        )
        self._requests: list[_Request] = []
        self._waiting: dict[_Request, None] = {}  # for room, in the order they came
        self._n_open = self._n_events = 0
        self._extra_bytes = 0
        self._peak_bytes = self._second_bytes = 0
        self._n_tokens = 0  # that had run when the last second ended
        self._seconds: list[Second] = []

    def replay(self, trace: Sequence[TraceEvent]) -> SimulationReport:
        """Let everything happen until the last request has ended, or MOST_TAIL_S are over."""
        clock = self._clock
        self._observe()
        line_bytes = self._admission.line_bytes
        self._n_events = len(trace)
        for event in trace:
            clock.plan(event.at_s, partial(self._take, event))
        clock.plan(PERIOD_S, self._look)
        end_s = MOST_TAIL_S + max((event.at_s for event in trace), default=0.0)
        while (self._n_events or self._n_open) and clock.now_s < end_s:
            clock.step()
        for request in self._requests:
            if request.record is None:
                self._record(request, Fate.UNFINISHED, None)
        self._note_second()
        return SimulationReport(
            limit_bytes=self._machine.limit_bytes,
            line_bytes=line_bytes,
            peak_bytes=self._peak_bytes,
            requests=[request.record for request in self._requests if request.record],
            transitions=self._transitions,
            seconds=self._seconds,
        )

    @property
    def _used_bytes(self) -> int:
        resting = self._machine.floor_bytes + self._extra_bytes
        return resting + self._admission.held_bytes + self._engine.used_bytes

    def _observe(self) -> None:
        self._admission.observe(self._used_bytes, self._machine.limit_bytes)
        self._note_peak()

    def _note_peak(self, more_bytes: int = 0) -> None:
        used_bytes = self._used_bytes + more_bytes
        self._peak_bytes = max(self._peak_bytes, used_bytes)
        self._second_bytes = max(self._second_bytes, used_bytes)

    def _limits(self) -> RunLimits:
        is_open = self._breaker.state is BreakerState.OPEN
        room_bytes = self._admission.room_for_run_bytes()
        return RunLimits(self._scheduler.plan, room_bytes, is_paused=is_open)

    def _note_transition(self, transition: Transition) -> None:
        self._transitions.append(transition)
        self._start_run()

    def _start_run(self) -> None:
        self._engine.start()
        self._note_peak()

    def _take(self, event: TraceEvent) -> None:
        self._n_events -= 1
        match event:
            case Arrival():
                self._arrive(event)
            case ExtraMemory(n_bytes=n_bytes):
                self._extra_bytes = n_bytes
                self._note_peak()
            case MemoryFailure():
                self._fail()

    def _arrive(self, arrival: Arrival) -> None:
        lengths = [min(n_tokens, self._machine.token_limit) for n_tokens in arrival.tokens]
        admittance = self._breaker.admit()
        request = _Request(arrival, lengths, self._machine.demand(lengths), admittance)
        self._requests.append(request)
        self._n_open += 1
        if admittance.verdict is Verdict.REFUSED:
            self._fall_back(request, "breaker_open")
        elif self._enter(request) is Outcome.WAIT:
            self._waiting[request] = None
            timeout_s = self._clock.now_s + self._machine.queue_timeout_s
            self._clock.plan(timeout_s, partial(self._give_up, request))

    def _enter(self, request: _Request) -> Outcome:
        """Let a request in, or refuse it, or neither."""
        outcome = self._decide(request.demand)
        if outcome is Outcome.WAIT:
            return outcome
        self._waiting.pop(request, None)
        if outcome is Outcome.ADMIT:
            request.ticket = self._admission.admit(request.demand)
            self._refill(request)
            self._start_run()
        else:
            full = outcome is Outcome.QUEUE_FULL
            self._end(request, Fate.QUEUE_FULL if full else Fate.TOO_LARGE)
        return outcome

    def _decide(self, demand: Demand) -> Outcome:
        self._observe()
        return self._admission.decide(demand).outcome

    def _wake(self) -> None:
        for request in list(self._waiting):
            self._enter(request)

    def _give_up(self, request: _Request) -> None:
        if self._waiting.pop(request, self) is None:
            self._fall_back(request, "memory_pressure")

    def _refill(self, request: _Request) -> None:
        """Queue what the executor's window and the service's batches let through."""
        batch_stop = (request.n_done // BATCH_TEXTS + 1) * BATCH_TEXTS
        stop = min(len(request.lengths), batch_stop, request.n_done + WINDOW_TEXTS)
        for n_tokens in request.lengths[request.n_queued : stop]:
            self._engine.put(request, n_tokens)
        request.n_queued = max(request.n_queued, stop)

    def _deliver(self, run: Run[_Request]) -> None:
        """Take the rows of a run."""
        self._note_peak()
        for request, n_tokens in zip(run.owners, run.lengths, strict=True):
            if request.wait_s is None:
                request.wait_s = run.began_s - request.arrival.at_s
            if request.ticket is not None:
                request.ticket.note_done(n_tokens)
                request.n_done += 1
        for request in dict.fromkeys(run.owners):
            if request.n_done == len(request.lengths):
                self._breaker.record_success(request.admittance)
                self._end(request, Fate.DENSE)
            elif request.ticket is not None:
                self._refill(request)

    def _fail(self) -> None:
        """Refuse an allocation, to the first text of the run that somebody still waits for."""
        owners = self._engine.run.owners if self._engine.run else ()
        request = next((owner for owner in owners if owner.ticket is not None), None)
        self._breaker.record_failure(request.admittance if request else None)
        if request:
            self._fall_back(request, "out_of_memory")

    def _fall_back(self, request: _Request, reason: str) -> None:
        """Answer with the fallback, if there is room for that."""
        texts = ["x" * (CHARACTERS_PER_TOKEN * n_tokens) for n_tokens in request.arrival.tokens]
        demand = sparse_demand(texts, is_fallback=True)
        outcome = self._decide(demand)
        if outcome is Outcome.ADMIT:
            self._note_peak(demand.peak_bytes)
            self._end(request, Fate.SPARSE, reason)
        else:
            too_large = outcome is Outcome.TOO_LARGE
            self._end(request, Fate.TOO_LARGE if too_large else Fate.NO_ROOM, reason)

    def _end(self, request: _Request, fate: Fate, reason: str | None = None) -> None:
        self._breaker.probe_dropped(request.admittance)
        self._engine.drop(request)
        self._record(request, fate, reason)
        self._n_open -= 1
        if request.ticket is not None:
            self._admission.release(request.ticket)
            request.ticket = None
            self._wake()

    def _record(self, request: _Request, fate: Fate, reason: str | None) -> None:
        arrival = request.arrival
        request.record = RequestRecord(
            at_s=arrival.at_s,
            n_texts=len(request.lengths),
            n_tokens=request.demand.n_tokens,
            fate=fate,
            reason=reason,
            wait_s=request.wait_s,
            answered_s=self._clock.now_s - arrival.at_s,
        )

    def _look(self) -> None:
        """What happens every second: the same that the server's watch does."""
        self._observe()
        admission, limit_bytes = self._admission, self._machine.limit_bytes
        used_ratio = self._used_bytes / limit_bytes
        self._breaker.observe(used_ratio, floor_ratio=admission.idle_floor_bytes / limit_bytes)
        self._scheduler.next(
            Observation(
                utilization_ratio=used_ratio,
                cores=self._machine.n_threads,
                tokens_per_s=(admission.n_tokens - self._n_tokens) / PERIOD_S,
                target_tokens_per_s=admission.tokens_per_s if admission.queue_tokens else 0.0,
                queue_tokens=admission.queue_tokens,
            )
        )
        self._wake()
        self._start_run()
        self._note_second()
        self._clock.plan(self._clock.now_s + PERIOD_S, self._look)

    def _note_second(self) -> None:
        plan, is_closed = self._scheduler.plan, self._breaker.state is BreakerState.CLOSED
        self._seconds.append(
            Second(
                at_s=self._clock.now_s,
                used_bytes=self._second_bytes,
                parallelism=plan.parallelism,
                step=(3 if self._waiting else plan.step) if is_closed else 4,
                breaker=self._breaker.state,
                queue_tokens=self._admission.queue_tokens,
                n_waiting=len(self._waiting),
            )
        )
        self._second_bytes = self._used_bytes
        self._n_tokens = self._admission.n_tokens
