"""Replay a trace of requests through the governor, on a clock that jumps between events.

Pure and deterministic: no thread, no file, no measurement. The governor is the server's own, asked
in the server's order, and so is the choice of runs and of what is tried where one finds no memory.
Memory is what is predicted:

    used = floor + extra + held by admitted requests + the run under way

So it tells what the rules make of a load, not whether predictions are true. Bodies, tokenizing and
the fallback take no time; every client can do with the fallback; no two texts are the same.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from plimsoll.policy.admission import Permit
from plimsoll.policy.breaker import Transition
from plimsoll.policy.costs import (
    BATCH_TEXTS,
    CHARACTERS_PER_TOKEN,
    WINDOW_TEXTS,
    sparse_demand,
)
from plimsoll.policy.decision import Decision, Outcome
from plimsoll.policy.governor import Governor
from plimsoll.policy.priority import priority_of
from plimsoll.simulation.attempts import Attempts
from plimsoll.simulation.clock import JumpingClock
from plimsoll.simulation.engine import SimulatedEngine, SimulatedText
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.recording import Recording
from plimsoll.simulation.report import Fate, SimulationReport
from plimsoll.simulation.request import SimulatedRequest
from plimsoll.simulation.trace import (
    Arrival,
    ExtraMemory,
    MemoryFailure,
    Processors,
    Rereading,
    TraceEvent,
)

PERIOD_S = 1.0
# After the last event of a trace; what has no answer by then is reported as unfinished.
MOST_TAIL_S = 3600.0


def simulate(trace: Iterable[TraceEvent], machine: SimulatedMachine) -> SimulationReport:
    """Say what would become of every request of `trace`, whose events may come in any order."""
    return _Server(machine).replay(sorted(trace, key=lambda event: event.at_s))


class _Server:
    """Owns everything that changes in the course of one simulation."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._clock = JumpingClock()
        self._transitions: list[Transition] = []
        self._governor = Governor(
            self._clock,
            budget_bytes=machine.limit_bytes,
            cores=machine.n_threads,
            queue_s=machine.queue_s,
            recovery_timeout_s=machine.recovery_timeout_s,
            on_transition=self._transitions.append,
        )
        self._engine: SimulatedEngine[SimulatedRequest] = SimulatedEngine(
            machine, self._clock, self._governor, self
        )
        self._attempts = Attempts()
        self._waiting: dict[Permit, SimulatedRequest] = {}
        self._n_open = self._n_events = 0
        self._extra_bytes = 0
        self._recording = Recording()

    def replay(self, trace: Sequence[TraceEvent]) -> SimulationReport:
        """Let everything happen until the last request has ended, or MOST_TAIL_S are over."""
        clock = self._clock
        self._measure()
        line_bytes = self._governor.admission.line_bytes
        self._n_events = len(trace)
        for event in trace:
            clock.plan(event.at_s, partial(self._take, event))
        clock.plan(PERIOD_S, self._look)
        end_s = MOST_TAIL_S + max((event.at_s for event in trace), default=0.0)
        while (self._n_events or self._n_open) and clock.now_s < end_s:
            clock.step()
        self._note_second()
        return SimulationReport(
            limit_bytes=self._machine.limit_bytes,
            line_bytes=line_bytes,
            peak_bytes=self._recording.peak_bytes,
            requests=self._attempts.records(clock.now_s),
            transitions=self._transitions,
            seconds=self._recording.seconds,
        )

    def rows_came(self, texts: Sequence[SimulatedText[SimulatedRequest]], began_s: float) -> None:
        """Hand rows to their requests, and queue what follows."""
        self._note_peak()
        for text in texts:
            request = text.owner
            if request.wait_s is None:
                request.wait_s = began_s - request.arrival.at_s
            if not request.has_ended:
                self._governor.admission.note_done(request.permit, text.n_tokens)
                request.n_done += 1
        for request in dict.fromkeys(text.owner for text in texts):
            if request.has_ended:
                continue
            if request.n_done == len(request.lengths):
                self._governor.succeeded(request.permit)
                self._end(request, Fate.DENSE)
            else:
                self._refill(request)
        self._wake()

    def found_no_memory(self, text: SimulatedText[SimulatedRequest]) -> None:
        """Tell the breaker, and answer with the fallback."""
        self._governor.failed(text.owner.permit)
        self._fall_back(text.owner, "out_of_memory")

    def found_no_room(self, text: SimulatedText[SimulatedRequest]) -> None:
        """Answer with the fallback."""
        self._fall_back(text.owner, "memory_pressure")

    @property
    def _used_bytes(self) -> int:
        resting = self._machine.floor_bytes + self._extra_bytes
        return resting + self._governor.admission.held_bytes + self._engine.used_bytes

    def _measure(self) -> None:
        self._governor.measure(self._used_bytes, self._machine.limit_bytes)
        self._note_peak()

    def _note_peak(self) -> None:
        self._recording.note_used(self._used_bytes)

    def _take(self, event: TraceEvent) -> None:
        self._n_events -= 1
        match event:
            case Arrival():
                self._arrive(event)
            case ExtraMemory(n_bytes=n_bytes):
                self._extra_bytes = n_bytes
                self._note_peak()
            case MemoryFailure(for_s=for_s):
                self._engine.fail(for_s)
            case Processors():
                self._engine.processors = event
            case Rereading(reread_s=reread_s):
                self._engine.reread_s = reread_s
        self._start_run()

    def _start_run(self) -> None:
        self._engine.start()
        self._note_peak()

    def _arrive(self, arrival: Arrival) -> None:
        request = SimulatedRequest.of(arrival, self._machine)
        self._attempts.begin(request)
        self._ask(request)

    def _ask(self, request: SimulatedRequest) -> None:
        self._n_open += 1
        decision = self._governor.enter(
            request.permit,
            asks_breaker=True,
            priority=priority_of(len(request.lengths)),
            size=request.size,
        )
        if decision.outcome is not Outcome.ADMIT:
            self._refuse(request, decision)
            return
        size = self._governor.explain(request.demands[-1])
        if size.outcome is Outcome.TOO_LARGE:
            self._refuse(request, size)
        else:
            self._enter(request)

    def _enter(self, request: SimulatedRequest) -> None:
        """Let a request in, or refuse it, or let it wait."""
        self._measure()
        decision = self._governor.renew(request.permit, request.demands[request.n_admitted])
        if decision.outcome is Outcome.WAIT:
            self._waiting[request.permit] = request
            self._limit_wait(request)
            return
        self._waiting.pop(request.permit, None)
        if decision.outcome is not Outcome.ADMIT:
            self._refuse(request, decision)
            return
        request.n_admitted += 1
        if request.n_admitted < len(request.demands):
            # More of it is tokenized first: those that are woken together with it are asked before.
            self._soon(partial(self._soon, partial(self._go_on, request)))
        else:
            self._refill(request)
            self._soon(self._start_run)

    def _limit_wait(self, request: SimulatedRequest) -> None:
        """Let it give up after the timeout, counted from its first wait."""
        if not request.has_waited:
            request.has_waited = True
            timeout_s = self._clock.now_s + self._machine.queue_timeout_s
            self._clock.plan(timeout_s, partial(self._give_up, request))

    def _go_on(self, request: SimulatedRequest) -> None:
        if not request.has_ended:
            self._enter(request)

    def _soon(self, action: Callable[[], None]) -> None:
        """Let something happen at this moment, after what is happening now."""
        self._clock.plan(self._clock.now_s, action)

    def _refuse(self, request: SimulatedRequest, decision: Decision) -> None:
        match decision.outcome:
            case Outcome.TOO_LARGE:
                self._end(request, Fate.TOO_LARGE)
            case Outcome.QUEUE_FULL:
                self._send_back(request, Fate.QUEUE_FULL, None, decision)
            case Outcome.BREAKER_OPEN:
                self._fall_back(request, "breaker_open")
            case _:
                self._fall_back(request, "memory_pressure")

    def _wake(self) -> None:
        for permit in self._governor.waiting:
            if permit in self._waiting:  # still: those before it may have woken it themselves
                self._enter(self._waiting[permit])

    def _give_up(self, request: SimulatedRequest) -> None:
        if self._waiting.pop(request.permit, None) is not None:
            self._fall_back(request, "memory_pressure")

    def _refill(self, request: SimulatedRequest) -> None:
        """Queue what the executor's window and the service's batches let through."""
        batch_stop = (request.n_done // BATCH_TEXTS + 1) * BATCH_TEXTS
        stop = min(len(request.lengths), batch_stop, request.n_done + WINDOW_TEXTS)
        priority = request.demands[-1].priority
        for n_tokens in request.lengths[request.n_queued : stop]:
            self._engine.put(request, n_tokens, priority)
        request.n_queued = max(request.n_queued, stop)

    def _fall_back(self, request: SimulatedRequest, reason: str) -> None:
        """Answer with the fallback, if there is room for that."""
        texts = ["x" * (CHARACTERS_PER_TOKEN * n_tokens) for n_tokens in request.arrival.tokens]
        if self._governor.drop(request.permit):
            self._make_room()
        self._measure()
        decision = self._governor.renew(request.permit, sparse_demand(texts), may_wait=False)
        self._note_peak()
        if decision.outcome is Outcome.ADMIT:
            self._end(request, Fate.SPARSE, reason)
        elif decision.outcome is Outcome.TOO_LARGE:
            self._end(request, Fate.NO_ROOM, reason)
        else:  # what the client is told last
            self._send_back(request, Fate.NO_ROOM, "memory_pressure", decision)

    def _send_back(
        self, request: SimulatedRequest, fate: Fate, reason: str | None, decision: Decision
    ) -> None:
        """Refuse a request, whose client may come back when it is told to."""
        self._end(request, fate, reason)
        if found := self._attempts.next_of(request, decision.retry_after_s):
            again, back_s = found
            self._n_events += 1
            self._clock.plan(self._clock.now_s + back_s, partial(self._come_back, again))

    def _come_back(self, request: SimulatedRequest) -> None:
        self._n_events -= 1
        self._ask(request)
        self._start_run()

    def _end(self, request: SimulatedRequest, fate: Fate, reason: str | None = None) -> None:
        request.end(fate, reason, self._clock.now_s)
        self._n_open -= 1
        if self._governor.leave(request.permit):
            self._make_room()

    def _make_room(self) -> None:
        """Wake the waiting soon, and not within: a wake may end others, and they may wake again."""
        self._soon(self._wake)
        self._soon(self._start_run)

    def _look(self) -> None:
        """What happens every second: the same that the server's control loop does."""
        self._note_peak()
        self._governor.observe(self._engine.reading(self._used_bytes))
        self._note_second()
        self._wake()
        self._start_run()
        self._clock.plan(self._clock.now_s + PERIOD_S, self._look)

    def _note_second(self) -> None:
        self._recording.note_second(self._clock.now_s, self._governor, self._used_bytes)
