"""The gate: who is let in, who waits and for how long, and what is left of those who gave up.

Time is the event loop's own, and the only timeouts are none at all or ones that never come.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.errors import MemoryPressureError, OverloadError, QueueFullError, TooLargeError
from app.memory.monitor import MemorySample
from app.serving.admission import FLOOR_WINDOW_S, Admission, Demand, Ticket
from app.serving.gate import AdmissionGate
from tests.fakes import DEADLINE_S, FakeClock

MIB = 1 << 20
BUDGET, LINE, FLOOR = 1000 * MIB, 700 * MIB, 100 * MIB
ROOM = LINE - FLOOR
QUEUE_TOKENS = 8192


class Bench:
    """A gate over memory that a test sets, and how often it told of changes."""

    def __init__(self, queue_timeout_s: float = DEADLINE_S) -> None:
        self.used_bytes = FLOOR
        self.n_samples = self.n_changes = 0
        self.clock = FakeClock()
        self.admission = Admission(self.clock, budget_bytes=BUDGET, queue_s=0)
        self.gate = AdmissionGate(
            self.admission, self.sample, queue_timeout_s=queue_timeout_s, on_change=self.note
        )
        self.gate.observe(self.sample())

    def sample(self) -> MemorySample:
        self.n_samples += 1
        return MemorySample(self.used_bytes, self.used_bytes, self.used_bytes, BUDGET, "group")

    def note(self) -> None:
        self.n_changes += 1

    def assert_empty(self) -> None:
        """Nobody is in, nobody waits, nothing is reserved."""
        assert self.admission.held_bytes == self.admission.run_bytes == 0
        assert self.admission.queue_tokens == 0
        assert not self.gate.is_holding_back


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, or fail where something never comes."""
    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


async def settled() -> None:
    """Every task has gone as far as it can: there are no more steps to it than these."""
    for _ in range(10):
        await asyncio.sleep(0)


async def waiting(bench: Bench, demand: Demand) -> "asyncio.Task[Ticket]":
    """A request that has begun to wait."""
    task = asyncio.create_task(bench.gate.enter(demand))
    await settled()
    assert not task.done()
    assert bench.gate.is_holding_back
    return task


# --- in, or not -----------------------------------------------------------------------------


def test_a_request_that_fits_is_let_in_at_once_by_a_fresh_measurement():
    """Memory may have changed since anybody looked last."""
    bench = Bench()

    async def scenario() -> None:
        await bench.gate.enter(Demand(10, 10 * MIB))
        bench.used_bytes = LINE - 50 * MIB
        with pytest.raises(MemoryPressureError):
            bench.gate.enter_now(Demand(10, 60 * MIB))
        await bench.gate.enter(Demand(10, 50 * MIB))

    run(scenario)
    assert bench.n_samples == 4  # with the one at start
    assert bench.n_changes == 2
    assert bench.admission.held_bytes == 60 * MIB


def test_a_request_that_waits_is_let_in_when_another_leaves():
    """That is what it waits for."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.gate.enter(Demand(10, ROOM))
        second = await waiting(bench, Demand(20, ROOM))
        bench.gate.leave(first)
        bench.gate.leave(await second)

    run(scenario)
    bench.assert_empty()


def test_a_request_that_still_does_not_fit_goes_on_waiting():
    """Not everybody who leaves makes enough room."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.gate.enter(Demand(10, ROOM // 2))
        second = await bench.gate.enter(Demand(10, ROOM // 2))
        large = await waiting(bench, Demand(10, ROOM))
        bench.gate.leave(first)
        await settled()
        assert not large.done()
        assert bench.gate.is_holding_back
        bench.gate.leave(second)
        await large

    run(scenario)
    assert not bench.gate.is_holding_back


def test_a_look_at_memory_lets_the_waiting_try_again():
    """Memory falls also where no request of ours ends."""
    bench = Bench()

    async def scenario() -> None:
        await bench.gate.enter(Demand(10, 0))
        bench.used_bytes = LINE
        task = await waiting(bench, Demand(10, 50 * MIB))
        bench.used_bytes = FLOOR
        bench.clock.now_s += 2 * FLOOR_WINDOW_S
        bench.gate.wake()
        await task

    run(scenario)
    assert bench.admission.held_bytes == 50 * MIB


def test_who_waits_longest_looks_first():
    """Where there is room for one, it is the one who came first."""
    bench = Bench()

    async def scenario() -> None:
        inside = await bench.gate.enter(Demand(10, ROOM))
        first = await waiting(bench, Demand(10, ROOM))
        second = await waiting(bench, Demand(10, ROOM))
        for task in (first, second):
            bench.gate.leave(inside)
            await settled()
            assert task.done()
            inside = task.result()
        assert not bench.gate.is_holding_back

    run(scenario)


def test_what_can_never_fit_is_told_its_limit_and_does_not_wait():
    """413 names the largest request that would fit."""
    bench = Bench()

    async def scenario() -> None:
        with pytest.raises(TooLargeError, match=r"takes 601 MiB .* more than 600 MiB"):
            await bench.gate.enter(Demand(10, 101 * MIB, 500 * MIB))

    run(scenario)
    bench.assert_empty()


def test_a_full_queue_is_refused_at_once_with_the_time_it_takes():
    """A queue that hides overload only makes everybody late."""
    bench = Bench()

    async def scenario() -> None:
        await bench.gate.enter(Demand(QUEUE_TOKENS + 400, 0))
        with pytest.raises(QueueFullError, match="would wait 45 s") as refused:
            await bench.gate.enter(Demand(400, 0))
        assert refused.value.retry_after_s == 2
        with pytest.raises(QueueFullError):
            bench.gate.check_queue()

    run(scenario)


# --- giving up ------------------------------------------------------------------------------


def test_a_request_that_finds_no_room_in_time_is_refused_with_the_numbers():
    """After the wait its client knows what was asked for, what there was, and when to come back."""
    bench = Bench(queue_timeout_s=0)

    async def scenario() -> None:
        await bench.gate.enter(Demand(10, ROOM - 7 * MIB))
        with pytest.raises(MemoryPressureError, match=r"takes 8 MiB .* and 7 MiB are") as refused:
            await bench.gate.enter(Demand(10, 8 * MIB))
        assert refused.value.retry_after_s >= 1

    run(scenario)
    assert bench.admission.held_bytes == ROOM - 7 * MIB
    assert not bench.gate.is_holding_back


def test_a_request_that_fits_is_let_in_however_short_the_timeout():
    """The timeout is for waiting, not for deciding."""
    bench = Bench(queue_timeout_s=0)

    async def scenario() -> None:
        await bench.gate.enter(Demand(10, ROOM))

    run(scenario)
    assert bench.admission.held_bytes == ROOM


def test_a_cancelled_waiter_leaves_nothing_behind():
    """A client that hangs up must not keep the server on a step of the memory ladder."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.gate.enter(Demand(10, ROOM))
        task = await waiting(bench, Demand(10, ROOM))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not bench.gate.is_holding_back
        bench.gate.leave(first)

    run(scenario)
    bench.assert_empty()


def test_a_waiter_that_is_cancelled_as_it_is_woken_takes_nothing():
    """Woken and cancelled in one turn of the loop: the room is for those who are still there."""
    bench = Bench()

    async def scenario() -> None:
        first = await bench.gate.enter(Demand(10, ROOM))
        gone = await waiting(bench, Demand(10, ROOM))
        other = await waiting(bench, Demand(10, ROOM))
        bench.gate.leave(first)
        gone.cancel()
        bench.gate.leave(await other)
        assert gone.cancelled()

    run(scenario)
    bench.assert_empty()


# --- what is set aside before there is a request --------------------------------------------


def test_a_reservation_counts_until_it_is_released():
    """A body on its way in takes memory before anybody knows what it asks for."""
    bench = Bench()
    reservation = bench.gate.reserve(ROOM)

    with pytest.raises(MemoryPressureError):
        bench.gate.reserve(1)
    reservation.release()
    bench.gate.reserve(ROOM).release()
    bench.assert_empty()


def test_a_reservation_that_could_never_fit_is_too_large():
    """It is no use to send that body again."""
    bench = Bench()

    with pytest.raises(TooLargeError):
        bench.gate.reserve(ROOM + 1)
    bench.assert_empty()


def test_a_reservation_grows_to_what_is_asked_and_never_shrinks():
    """It is told totals, and a total that is known already is none to pay twice."""
    bench = Bench()
    reservation = bench.gate.reserve(ROOM // 2)

    reservation.grow(ROOM)
    reservation.grow(ROOM // 2)
    assert bench.admission.held_bytes == ROOM
    with pytest.raises(MemoryPressureError):
        bench.gate.reserve(1)


def test_whoever_is_told_of_changes_hears_of_growth():
    """The engine's next run has that much less room."""
    bench = Bench()
    reservation = bench.gate.reserve(MIB)
    n_changes = bench.n_changes

    reservation.grow(2 * MIB)
    assert bench.n_changes == n_changes + 1
    reservation.grow(2 * MIB)
    assert bench.n_changes == n_changes + 1


@pytest.mark.parametrize(
    ("others_bytes", "total_bytes", "error"),
    [(300 * MIB, 301 * MIB, MemoryPressureError), (0, ROOM + 1, TooLargeError)],
    ids=["at the moment", "ever"],
)
def test_a_reservation_that_cannot_grow_keeps_what_it_had(
    others_bytes: int, total_bytes: int, error: type[OverloadError | TooLargeError]
):
    """Its owner decides what becomes of it; and what can never fit is not to be sent again, even
    where it came in small steps."""
    bench = Bench()
    bench.gate.reserve(others_bytes)
    reservation = bench.gate.reserve(200 * MIB)

    with pytest.raises(error):
        reservation.grow(total_bytes)
    assert bench.admission.held_bytes == others_bytes + 200 * MIB
    reservation.release()
    assert bench.admission.held_bytes == others_bytes


def test_a_reservation_that_ends_wakes_those_who_wait():
    """Its room is as good as that of a request."""
    bench = Bench()

    async def scenario() -> None:
        reservation = bench.gate.reserve(ROOM)
        task = await waiting(bench, Demand(10, ROOM))
        reservation.release()
        await task

    run(scenario)


def test_a_full_queue_keeps_large_bodies_out_before_they_are_read():
    """Receiving and parsing megabytes for a refusal takes the time of those who are served."""
    bench = Bench()

    async def scenario() -> None:
        await bench.gate.enter(Demand(2 * QUEUE_TOKENS, 0))
        with pytest.raises(QueueFullError):
            bench.gate.reserve(MIB)

    run(scenario)


def test_a_body_that_is_in_already_may_grow_whatever_waits():
    """It has been let in; whether there is room is the only question left."""
    bench = Bench()

    async def scenario() -> None:
        reservation = bench.gate.reserve(MIB)
        await bench.gate.enter(Demand(2 * QUEUE_TOKENS, 0))
        reservation.grow(2 * MIB)

    run(scenario)


# --- waiting for room without a request -----------------------------------------------------


def test_a_body_waits_for_room_and_is_told_when_it_comes():
    """A large body that comes a second too early is no reason to send it twice."""
    bench = Bench(queue_timeout_s=60)

    async def scenario() -> None:
        first = bench.gate.reserve(ROOM)
        waiting = asyncio.create_task(bench.gate.wait_for_room(ROOM))
        await asyncio.sleep(0)
        assert not waiting.done()
        first.release()
        await waiting
        bench.gate.reserve(ROOM).release()

    run(scenario)


def test_waiting_for_room_ends_with_the_timeout_and_refuses_nothing_itself():
    """What comes after it says what is wrong, with the numbers."""
    bench = Bench(queue_timeout_s=0)

    async def scenario() -> None:
        bench.gate.reserve(ROOM)
        await bench.gate.wait_for_room(1)
        with pytest.raises(MemoryPressureError):
            bench.gate.reserve(1)

    run(scenario)


def test_a_reservation_that_shrinks_makes_room_for_others():
    """Once a body is parsed, its bytes are gone."""
    bench = Bench()

    async def scenario() -> None:
        reservation = bench.gate.reserve(ROOM)
        reservation.shrink(ROOM // 2)
        bench.gate.reserve(ROOM // 2)
        reservation.shrink(ROOM)  # never grows
        with pytest.raises(MemoryPressureError):
            bench.gate.reserve(1)

    run(scenario)
