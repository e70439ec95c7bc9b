"""The gate: who is let in, who waits and for how long, and what is left of those who gave up.

Time is the event loop's own, and the only timeouts are none at all or ones that never come; where
waits add up, the loop's clock is made up.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from plimsoll.errors import (
    BreakerOpenError,
    MemoryPressureError,
    OverloadError,
    QueueFullError,
    TooLargeError,
)
from plimsoll.machine.memory import MemoryUsage
from plimsoll.policy import lines
from plimsoll.policy.backlog import RATE_TOKENS
from plimsoll.policy.breaker import BreakerState
from plimsoll.policy.costs import Demand
from plimsoll.policy.decision import Outcome
from plimsoll.policy.floor import FLOOR_WINDOW_S
from plimsoll.policy.governor import Governor
from plimsoll.policy.runs import RunLimits
from plimsoll.serving.gate import AdmissionGate, RequestPermit
from tests.fakes import DEADLINE_S, FakeClock
from tests.policy.ended_runs import run_of
from tests.simulation.virtual_time import VirtualLoop

MIB = 1 << 20
BUDGET, LINE, FLOOR = 1000 * MIB, 700 * MIB, 100 * MIB
ROOM = LINE - FLOOR
QUEUE_TOKENS = 8192
RECOVERY_S = 15.0


class Bench:
    """A gate over memory that a test sets, and the limits that it told the executor."""

    def __init__(
        self, queue_timeout_s: float = DEADLINE_S, clock: Callable[[], float] | None = None
    ) -> None:
        self.used_bytes = FLOOR
        self.n_samples = 0
        self.limits: list[RunLimits] = []
        self.clock = FakeClock()
        self.governor = Governor(
            clock or self.clock,
            budget_bytes=BUDGET,
            cores=2,
            queue_s=0,
            recovery_timeout_s=RECOVERY_S,
        )
        self.admission = self.governor.admission
        self.gate = AdmissionGate(
            self.governor, self.usage, self.limits.append, queue_timeout_s=queue_timeout_s
        )
        self.gate.measure()

    def usage(self) -> MemoryUsage:
        self.n_samples += 1
        return MemoryUsage(self.used_bytes, BUDGET)

    async def admitted(self, demand: Demand) -> RequestPermit:
        """A request, once it is in."""
        permit = self.gate.permit()
        await permit.renew(demand)
        return permit

    def keeping(self, n_bytes: int) -> RequestPermit:
        """A request whose body is on its way in."""
        permit = self.gate.permit()
        permit.keep(n_bytes)
        return permit

    def open_breaker(self) -> None:
        for _ in range(lines.FAILURES):
            self.gate.permit().failed()

    def assert_empty(self) -> None:
        """No request is in, none waits, nothing is reserved."""
        assert self.admission.held_bytes == self.admission.run_bytes == 0
        assert self.admission.backlog.queue_tokens == 0
        assert not self.governor.waiting


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, or fail where something never comes."""
    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


async def settled() -> None:
    """Every task has gone as far as it can: there are no more steps to it than these."""
    for _ in range(10):
        await asyncio.sleep(0)


async def waiting(bench: Bench, demand: Demand) -> "asyncio.Task[RequestPermit]":
    """A request that has begun to wait."""
    n_waiting = len(bench.governor.waiting)
    task = asyncio.create_task(bench.admitted(demand))
    await settled()
    assert not task.done()
    assert len(bench.governor.waiting) == n_waiting + 1
    return task


# --- in, or not -----------------------------------------------------------------------------


def test_a_request_that_fits_is_let_in_at_once_by_a_fresh_measurement():
    """Memory may have changed since the last look."""
    bench = Bench()

    async def scenario() -> None:
        await bench.admitted(Demand(10, 10 * MIB))
        bench.used_bytes = LINE - 50 * MIB
        with pytest.raises(MemoryPressureError):
            bench.gate.permit().renew_now(Demand(10, 60 * MIB))
        await bench.admitted(Demand(10, 50 * MIB))

    run(scenario)
    assert bench.n_samples == 4  # with the one at start
    assert [limits.room_bytes for limits in bench.limits] == [ROOM - 10 * MIB, 0]
    assert bench.admission.held_bytes == 60 * MIB


def test_explaining_measures_anew_and_lets_nothing_in():
    """A client that asks before it sends gets the answer that it would get."""
    bench = Bench()
    bench.used_bytes = LINE - 50 * MIB
    bench.keeping(0)  # or what is in use would pass for rest

    async def scenario() -> None:
        await bench.admitted(Demand(10, 0))
        n_samples, n_limits = bench.n_samples, len(bench.limits)
        decisions = [
            bench.gate.permit().explain(Demand(10, n_bytes), asks_breaker=True)
            for n_bytes in (10 * MIB, ROOM)
        ]
        assert [each.outcome for each in decisions] == [Outcome.ADMIT, Outcome.WAIT]
        assert bench.n_samples == n_samples + 2
        assert len(bench.limits) == n_limits

    run(scenario)
    assert bench.admission.held_bytes == 0
    assert not bench.governor.waiting


def test_a_request_that_waits_is_let_in_when_another_leaves():
    """That is what it waits for."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.admitted(Demand(10, ROOM))
        second = await waiting(bench, Demand(20, ROOM))
        first.leave()
        (await second).leave()

    run(scenario)
    bench.assert_empty()


@pytest.mark.parametrize("end", ["drop", "leave"])
def test_a_request_that_gives_up_its_demand_makes_room_as_well(end: str):
    """It gets BM25 instead; what the model would have taken is there for those who wait."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.admitted(Demand(10, ROOM))
        second = await waiting(bench, Demand(20, ROOM))
        getattr(first, end)()
        await second

    run(scenario)
    assert bench.admission.held_bytes == ROOM


def test_a_request_that_still_does_not_fit_goes_on_waiting():
    """Not every request that leaves makes enough room."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.admitted(Demand(10, ROOM // 2))
        second = await bench.admitted(Demand(10, ROOM // 2))
        large = await waiting(bench, Demand(10, ROOM))
        first.leave()
        await settled()
        assert not large.done()
        assert bench.governor.step == lines.WAITING_STEP
        second.leave()
        await large

    run(scenario)
    assert not bench.governor.waiting


def test_a_look_at_memory_lets_the_waiting_try_again():
    """Memory falls also where no request of ours ends."""
    bench = Bench()

    async def scenario() -> None:
        await bench.admitted(Demand(10, 0))
        bench.used_bytes = LINE
        task = await waiting(bench, Demand(10, 50 * MIB))
        bench.used_bytes = FLOOR
        bench.clock.now_s += 2 * FLOOR_WINDOW_S
        bench.gate.wake()
        await task

    run(scenario)
    assert bench.admission.held_bytes == 50 * MIB


def test_the_request_that_waits_longest_looks_first():
    """Where there is room for one, it is the one that came first."""
    bench = Bench()

    async def scenario() -> None:
        inside = await bench.admitted(Demand(10, ROOM))
        first = await waiting(bench, Demand(10, ROOM))
        second = await waiting(bench, Demand(10, ROOM))
        for task in (first, second):
            inside.leave()
            await settled()
            assert task.done()
            inside = task.result()
        assert not bench.governor.waiting

    run(scenario)


def test_a_request_looks_before_background_work_that_came_first():
    bench = Bench()

    async def scenario() -> None:
        inside = await bench.admitted(Demand(10, ROOM))
        bulk = await waiting(bench, Demand(10, ROOM - 200 * MIB, yields=True))
        live = await waiting(bench, Demand(10, ROOM - 200 * MIB))
        inside.leave()
        await settled()
        assert live.done()
        assert not bulk.done()
        live.result().leave()
        await settled()
        assert bulk.done()

    run(scenario)


def test_what_can_never_fit_is_told_its_limit_and_does_not_wait():
    """413 names the largest request that would fit."""
    bench = Bench()

    async def scenario() -> None:
        with pytest.raises(TooLargeError, match=r"takes 601 MiB .* more than 600 MiB"):
            await bench.admitted(Demand(10, 101 * MIB, 500 * MIB))

    run(scenario)
    bench.assert_empty()


def test_a_size_that_can_never_fit_is_known_before_anything_is_reserved():
    """A book is not tokenized to its end for a refusal; what is short now is no matter for this."""
    bench = Bench()
    bench.keeping(ROOM)
    permit = bench.gate.permit()

    permit.check_size(Demand(10, ROOM))
    with pytest.raises(TooLargeError):
        permit.check_size(Demand(10, ROOM + 1))
    assert permit.held_bytes == 0
    assert not bench.governor.waiting


def test_a_full_queue_is_refused_at_once_with_the_time_it_takes():
    """A queue that hides overload only makes all of them late."""
    bench = Bench()

    async def scenario() -> None:
        await bench.admitted(Demand(QUEUE_TOKENS + 400, 0))
        with pytest.raises(QueueFullError) as refused:
            await bench.admitted(Demand(400, 0))
        assert refused.value.retry_after_s == 2
        with pytest.raises(QueueFullError):
            bench.gate.permit().enter(asks_breaker=False, size=1000)

    run(scenario)


@pytest.mark.parametrize(("n_seconds", "said"), [(50, None), (90, "its turn comes in 90 s")])
def test_who_is_told_less_than_it_takes_hears_of_that_too(n_seconds: int, said: str | None):
    """A person who reads the message must not take half the way for the whole."""
    bench = Bench()
    backlog = bench.admission.backlog

    async def scenario() -> None:
        backlog.note_run(RATE_TOKENS, RATE_TOKENS / backlog.tokens_per_s)
        await bench.admitted(Demand(QUEUE_TOKENS + round(n_seconds * backlog.tokens_per_s), 0))
        with pytest.raises(QueueFullError) as refused:
            bench.gate.permit().enter(asks_breaker=False, size=2000)
        assert refused.value.retry_after_s == (n_seconds / 2 if said else n_seconds)
        assert ("its turn" in str(refused.value)) == (said is not None)
        assert said is None or f"{said}, and its place is kept" in str(refused.value)
        with pytest.raises(QueueFullError) as unsized:  # by which it could be known again
            bench.gate.permit().enter(asks_breaker=False)
        assert "place is kept" not in str(unsized.value)

    run(scenario)


@pytest.mark.parametrize(
    ("free_bytes", "said"), [(12 * MIB, "12 MiB"), (3 * MIB // 2, "1.5 MiB"), (200, "0.00019 MiB")]
)
def test_small_amounts_are_said_with_as_many_places_as_it_takes(free_bytes: int, said: str):
    """ "0 MiB are free" for a request of "0 MiB" once hid what was short."""
    bench = Bench(queue_timeout_s=0)
    bench.keeping(ROOM - free_bytes)

    with pytest.raises(MemoryPressureError, match=f"and {said} are free"):
        bench.gate.permit().keep(20 * MIB)


# --- the breaker ----------------------------------------------------------------------------


def test_an_open_breaker_refuses_at_the_door_and_says_when_to_come_back():
    """Before any work is done; and those that do not ask it may come in."""
    bench = Bench()
    bench.open_breaker()

    with pytest.raises(BreakerOpenError) as refused:
        bench.gate.permit().enter(asks_breaker=True)
    assert refused.value.retry_after_s == RECOVERY_S
    bench.gate.permit().enter(asks_breaker=False)


def test_the_probes_start_and_its_outcome_reach_the_executor():
    """It was paused while the breaker was open: the probe would wait for itself."""
    bench = Bench()
    bench.open_breaker()
    bench.gate.wake()
    assert bench.limits[-1].is_paused
    bench.clock.now_s += RECOVERY_S
    probe = bench.gate.permit()
    probe.enter(asks_breaker=True)
    assert not bench.limits[-1].is_paused

    probe.failed()
    probe.leave()
    assert bench.governor.breaker.state is BreakerState.OPEN
    assert bench.limits[-1].is_paused


def test_a_good_end_is_told_the_breaker():
    """Without it no probe would ever close it."""
    bench = Bench()
    bench.governor.breaker.observe(0.1)
    bench.open_breaker()
    bench.clock.now_s += RECOVERY_S
    probe = bench.gate.permit()
    probe.enter(asks_breaker=True)
    probe.succeeded()

    assert bench.governor.breaker.state is BreakerState.CLOSED


# --- giving up ------------------------------------------------------------------------------


def test_a_request_that_finds_no_room_in_time_is_refused_with_the_numbers():
    """After the wait its client knows what was asked for, what there was, and when to come back."""
    bench = Bench(queue_timeout_s=0)

    async def scenario() -> None:
        await bench.admitted(Demand(10, ROOM - 7 * MIB))
        with pytest.raises(MemoryPressureError, match=r"takes 8 MiB .* and 7 MiB are") as refused:
            await bench.admitted(Demand(10, 8 * MIB))
        assert refused.value.retry_after_s >= 1

    run(scenario)
    assert bench.admission.held_bytes == ROOM - 7 * MIB
    assert not bench.governor.waiting


def test_a_request_that_fits_is_let_in_however_short_the_timeout():
    """The timeout is for waiting, not for deciding."""
    bench = Bench(queue_timeout_s=0)

    async def scenario() -> None:
        await bench.admitted(Demand(10, ROOM))

    run(scenario)
    assert bench.admission.held_bytes == ROOM


def test_all_the_waits_of_a_request_share_one_timeout():
    """For its body, its ids, its demand: each with a timeout of its own, a client would wait three
    times as long as the setting says."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        bench = Bench(queue_timeout_s=5.0, clock=loop.time)
        holding = bench.keeping(ROOM)
        permit = bench.gate.permit()
        loop.call_later(2.0, holding.shrink, ROOM // 2)
        await permit.wait_to_keep(ROOM // 2)
        assert loop.time() == 2.0
        permit.keep(ROOM // 2)
        loop.call_later(2.0, holding.shrink, ROOM // 4)
        await permit.renew(Demand(10, ROOM // 4))
        assert loop.time() == 4.0
        with pytest.raises(MemoryPressureError):
            await permit.renew(Demand(10, ROOM // 2))
        assert loop.time() == pytest.approx(5.0)
        assert permit.held_bytes == 3 * ROOM // 4

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


def test_a_cancelled_waiter_leaves_nothing_behind():
    """A client that hangs up must not keep the server on a step of the memory ladder."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.admitted(Demand(10, ROOM))
        task = await waiting(bench, Demand(10, ROOM))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not bench.governor.waiting
        first.leave()

    run(scenario)
    bench.assert_empty()


def test_a_waiter_that_is_cancelled_as_it_is_woken_takes_nothing():
    """Woken and cancelled in one turn of the loop: the room is for those that are still there."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.admitted(Demand(10, ROOM))
        gone = await waiting(bench, Demand(10, ROOM))
        other = await waiting(bench, Demand(10, ROOM))
        first.leave()
        gone.cancel()
        (await other).leave()
        assert gone.cancelled()

    run(scenario)
    bench.assert_empty()


# --- what is kept beside the texts ----------------------------------------------------------


def test_a_body_counts_until_its_request_is_left():
    """On its way in it takes memory before it is known what it asks for."""
    bench = Bench()
    permit = bench.keeping(ROOM)

    with pytest.raises(MemoryPressureError):
        bench.keeping(1)
    permit.leave()
    bench.keeping(ROOM).leave()
    bench.assert_empty()


def test_a_body_that_could_never_fit_is_too_large():
    """It is no use to send it again."""
    bench = Bench()

    with pytest.raises(TooLargeError):
        bench.keeping(ROOM + 1)
    bench.assert_empty()


def test_a_body_grows_to_what_is_asked_and_never_shrinks_by_it():
    """It is told totals, and a total that is known already is none to pay twice."""
    bench = Bench()
    permit = bench.keeping(ROOM // 2)

    permit.keep(ROOM)
    permit.keep(ROOM // 2)
    assert permit.kept_bytes == bench.admission.held_bytes == ROOM
    with pytest.raises(MemoryPressureError):
        bench.keeping(1)


def test_the_executor_is_told_of_growth():
    """The engine's next run has that much less room."""
    bench = Bench()
    permit = bench.keeping(MIB)
    n_told = len(bench.limits)

    permit.keep(2 * MIB)
    assert bench.limits[n_told:] == [bench.governor.limits()]
    assert bench.limits[-1].room_bytes == ROOM - 2 * MIB
    permit.keep(2 * MIB)
    assert len(bench.limits) == n_told + 1


@pytest.mark.parametrize(
    ("others_bytes", "total_bytes", "error"),
    [(300 * MIB, 301 * MIB, MemoryPressureError), (0, ROOM + 1, TooLargeError)],
    ids=["at the moment", "ever"],
)
def test_a_body_that_cannot_grow_keeps_what_it_had(
    others_bytes: int, total_bytes: int, error: type[OverloadError | TooLargeError]
):
    """Its owner decides what becomes of it; and what can never fit is not to be sent again, even
    where it came in small steps."""
    bench = Bench()
    bench.keeping(others_bytes)
    permit = bench.keeping(200 * MIB)

    with pytest.raises(error):
        permit.keep(total_bytes)
    assert bench.admission.held_bytes == others_bytes + 200 * MIB
    permit.leave()
    assert bench.admission.held_bytes == others_bytes


def test_a_body_that_goes_wakes_those_who_wait():
    """Its room is as good as that of a request."""
    bench = Bench()

    async def scenario() -> None:
        permit = bench.keeping(ROOM)
        task = await waiting(bench, Demand(10, ROOM))
        permit.leave()
        await task

    run(scenario)


def test_a_full_queue_keeps_large_bodies_out_before_they_are_read():
    """Receiving and parsing megabytes for a refusal takes the time of those who are served."""
    bench = Bench()

    async def scenario() -> None:
        await bench.admitted(Demand(2 * QUEUE_TOKENS, 0))
        with pytest.raises(QueueFullError):
            bench.gate.permit().enter(asks_breaker=False, size=MIB)

    run(scenario)


def test_a_body_that_is_in_already_may_grow_however_full_the_queue():
    """It has been let in; whether there is room is the only question left."""
    bench = Bench()

    async def scenario() -> None:
        permit = bench.gate.permit()
        permit.enter(asks_breaker=False)
        permit.keep(MIB)
        await bench.admitted(Demand(2 * QUEUE_TOKENS, 0))
        permit.keep(2 * MIB)
        assert permit.kept_bytes == bench.admission.held_bytes == 2 * MIB
        with pytest.raises(QueueFullError):
            bench.gate.permit().enter(asks_breaker=False, size=MIB)

    run(scenario)


def test_a_settled_demand_stays_held_and_a_dropped_one_does_not():
    """Vectors stay until the reply has been sent; what was only tried does not."""
    bench = Bench()

    async def scenario() -> None:
        permit = await bench.admitted(Demand(10, 100, run_bytes=50))
        permit.note_done(4)
        assert bench.admission.backlog.queue_tokens == 6
        permit.settle()
        await permit.renew(Demand(20, 30))
        assert (permit.held_bytes, bench.admission.backlog.queue_tokens) == (130, 20)
        permit.drop()
        assert (permit.held_bytes, bench.admission.backlog.queue_tokens) == (100, 0)
        permit.leave()

    run(scenario)
    bench.assert_empty()


# --- waiting for room before a body is read -------------------------------------------------


def test_a_body_waits_for_room_and_is_told_when_it_comes():
    """A large body that comes a second too early is no reason to send it twice."""
    bench = Bench(queue_timeout_s=60)

    async def scenario() -> None:
        first = bench.keeping(ROOM)
        permit = bench.gate.permit()
        waiting = asyncio.create_task(permit.wait_to_keep(ROOM))
        await asyncio.sleep(0)
        assert not waiting.done()
        first.leave()
        await waiting
        assert bench.admission.held_bytes == 0  # it was only told
        permit.keep(ROOM)
        permit.leave()

    run(scenario)
    bench.assert_empty()


def test_a_body_waits_only_for_what_it_does_not_hold_yet():
    """It is told totals here too."""
    bench = Bench(queue_timeout_s=60)

    async def scenario() -> None:
        permit = bench.keeping(ROOM)
        await permit.wait_to_keep(ROOM)

    run(scenario)


def test_waiting_for_room_ends_with_the_timeout_and_refuses_nothing_itself():
    """What comes after it says what is wrong, with the numbers."""
    bench = Bench(queue_timeout_s=0)

    async def scenario() -> None:
        bench.keeping(ROOM)
        permit = bench.gate.permit()
        await permit.wait_to_keep(1)
        with pytest.raises(MemoryPressureError):
            permit.keep(1)

    run(scenario)
    assert not bench.governor.waiting


def test_a_body_that_hangs_up_while_it_waits_leaves_nothing_behind():
    """It held nothing yet, and waits no more."""
    bench = Bench()

    async def scenario() -> None:
        holding = bench.keeping(ROOM)
        task = asyncio.create_task(bench.gate.permit().wait_to_keep(1))
        await settled()
        assert len(bench.governor.waiting) == 1
        task.cancel()
        await asyncio.wait([task])
        assert not bench.governor.waiting
        holding.leave()

    run(scenario)
    bench.assert_empty()


def test_a_body_that_shrinks_makes_room_for_others():
    """Once it is parsed, its bytes are gone; those who wait hear of it."""
    bench = Bench()

    async def scenario() -> None:
        permit = bench.keeping(ROOM)
        task = await waiting(bench, Demand(10, ROOM // 2))
        permit.shrink(ROOM // 2)
        await task
        permit.shrink(ROOM)  # never grows
        assert permit.kept_bytes == ROOM // 2
        with pytest.raises(MemoryPressureError):
            bench.keeping(1)

    run(scenario)


# --- runs and models ------------------------------------------------------------------------


def test_a_run_that_ends_lets_the_waiting_try_again():
    """What it took is there for them."""
    bench = Bench()

    async def scenario() -> None:
        await bench.admitted(Demand(10, 100 * MIB))
        bench.gate.run_began(500 * MIB)
        task = await waiting(bench, Demand(10, 100 * MIB))
        bench.gate.run_ended(run_of(10, 1.0))
        bench.gate.wake()
        await task

    run(scenario)
    assert bench.governor.totals.n_runs == 1


def test_a_model_that_has_opened_is_measured_at_once_and_the_waiting_hear_of_it():
    """Behind the old rest everything would be refused for minutes, on a server that idles."""
    bench = Bench()

    async def scenario() -> None:
        bench.used_bytes = 400 * MIB
        bench.gate.measure_rest_anew()
        assert bench.admission.idle_floor_bytes == 400 * MIB
        assert bench.limits[-1].room_bytes == LINE - 400 * MIB
        await bench.admitted(Demand(10, 250 * MIB))
        task = await waiting(bench, Demand(10, 100 * MIB))
        bench.used_bytes = FLOOR  # and now it has closed
        bench.gate.measure_rest_anew()
        await task

    run(scenario)
