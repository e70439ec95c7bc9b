"""Several models with room for few: who opens, who makes room, who waits."""

import asyncio
import random
from collections.abc import Callable
from functools import partial

import pytest

from plimsoll.errors import (
    CacheCorruptError,
    ModelDownloadError,
    ModelLoadingError,
    ModelNotFoundError,
    ModelUnsupportedError,
    UnknownModelError,
)
from plimsoll.models import pool
from plimsoll.models.pool import ModelPool
from plimsoll.models.slot import RETRY_UNASKED_S, ModelSlot, ModelState, SlotEvent
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import DEADLINE_S, FakeClock, FakeModel, FakeOpener, fake_slot, metric
from tests.logged import own_records


class Fleet:
    """Fake models in one pool; counts for itself how many were open at once."""

    def __init__(
        self,
        names: str,
        *,
        max_open: int = 2,
        load_wait_s: float = DEADLINE_S,
        idle_unload_s: float = 0,
    ) -> None:
        self.clock = FakeClock()
        self.most_open = 0
        self.opened = ""  # names in the order of opening
        self._telemetry = Telemetry("test")
        self.openers = {name: FakeOpener() for name in names}
        slots = [
            fake_slot(
                CountingOpener(opener, partial(self._count, name)),
                name,
                f"{name}:latest",
                idle_unload_s=idle_unload_s,
                clock=self.clock,
                telemetry=self._telemetry,
            )
            for name, opener in self.openers.items()
        ]
        self.pool = ModelPool(slots, max_open=max_open, load_wait_s=load_wait_s)

    async def use(self, names: str) -> FakeModel:
        """Use models one after another, a second apart; returns the last."""
        for name in names:
            async with self.pool.lease(name) as model:
                self.clock.now_s += 1
        return model

    @property
    def open(self) -> str:
        """Names of the models that are open."""
        return "".join(slot.name for slot in self.pool.slots if slot.holds_memory)

    def n_evicted(self, reason: str) -> float:
        """How many models were closed for that reason."""
        series = f'plimsoll_model_evictions_total{{reason="{reason}"}}'
        return metric(self._telemetry.render().decode(), series)

    def _count(self, name: str) -> None:
        self.opened += name
        models = [model for opener in self.openers.values() for model in opener.models]
        self.most_open = max(self.most_open, sum(not model.closed.is_set() for model in models))


class CountingOpener:
    """A fake opener that says when it has opened."""

    def __init__(self, opener: FakeOpener, opened: Callable[[], None]) -> None:
        self._opener = opener
        self._opened = opened
        self.look, self.has_new_file = opener.look, opener.has_new_file
        self.source_change = opener.source_change

    def open(self, progress: Callable[[int, int, str], None]) -> FakeModel:
        """Open, then say so."""
        model = self._opener.open(progress)
        self._opened()
        return model


async def wait_for(happened: Callable[[], bool]) -> None:
    """Let the others run until it has happened."""
    async with asyncio.timeout(DEADLINE_S):
        while not happened():
            await asyncio.sleep(0)


async def let_run() -> None:
    """Let other tasks run until they wait for something else."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- names ----------------------------------------------------------------------------------


def test_a_model_goes_by_each_of_its_names_in_any_case():
    """Clients are configured with whichever name their users know."""

    async def scenario() -> None:
        fleet = Fleet("ab")
        for name in ("b", "B", "b:latest", "B:Latest"):
            async with fleet.pool.lease(name) as model:
                assert model is fleet.openers["b"].models[0]
        assert fleet.pool.names == ["a", "a:latest", "b", "b:latest"]

    asyncio.run(scenario())


def test_without_a_name_the_first_model_answers():
    """Most clients know of one model only."""

    async def scenario() -> None:
        fleet = Fleet("ab")
        async with fleet.pool.lease() as model:
            assert model is fleet.openers["a"].models[0]

    asyncio.run(scenario())


def test_a_name_that_no_model_has_is_refused_with_those_there_are():
    """Vectors of another model than the one asked for would be stored as its own."""

    async def scenario() -> None:
        fleet = Fleet("ab")
        with pytest.raises(UnknownModelError, match=r"'a', 'b', not 'c'") as refused:
            async with fleet.pool.lease("c"):
                pass
        assert refused.value.param == "model"
        assert fleet.open == ""

    asyncio.run(scenario())


# --- opening and making room ----------------------------------------------------------------


def test_many_requests_at_once_open_each_model_once():
    """Also when they come mixed; twenty loads would need twenty times the memory."""

    async def scenario() -> None:
        fleet = Fleet("ab")
        await asyncio.gather(*(fleet.use(name) for name in "ab" * 10))
        assert [opener.n_tries for opener in fleet.openers.values()] == [1, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize(("used", "left"), [("abc", "bc"), ("abac", "ac"), ("abcb", "bc")])
def test_the_least_recently_used_model_makes_room(used: str, left: str):
    """Not the one that opened first: it may be the busiest."""

    async def scenario() -> None:
        fleet = Fleet("abc", max_open=2)
        await fleet.use(used)
        assert fleet.open == left
        assert fleet.most_open == 2
        assert fleet.n_evicted("lru") == 1

    asyncio.run(scenario())


def test_a_model_in_use_never_makes_room():
    """Unmapping weights under a request that computes would crash the process."""

    async def scenario() -> None:
        fleet = Fleet("abc", max_open=2)
        async with fleet.pool.lease("a") as held:
            await fleet.use("bc")
            assert fleet.open == "ac"
            assert not held.closed.is_set()

    asyncio.run(scenario())


def test_two_models_take_turns_where_there_is_room_for_one():
    """Slow, but it answers, in one model's memory."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=1)
        await fleet.use("abab")
        assert fleet.open == "b"
        assert fleet.most_open == 1
        assert fleet.n_evicted("lru") == 3

    asyncio.run(scenario())


def test_a_model_still_takes_room_while_it_closes():
    """Its memory is given back at the end of closing, not at the beginning."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=1, load_wait_s=0.01)
        leaving = await fleet.use("a")
        leaving.close_gate.clear()
        with pytest.raises(ModelLoadingError):
            await fleet.use("b")
        assert leaving.closing.is_set()
        assert fleet.openers["b"].n_tries == 0
        leaving.close_gate.set()
        await wait_for(lambda: fleet.open == "")

    asyncio.run(scenario())


# --- waiting for room -----------------------------------------------------------------------


def test_a_request_waits_until_a_model_is_free():
    """All of them in use is a matter of moments, mostly."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=1)
        async with fleet.pool.lease("a"):
            waiting = asyncio.create_task(fleet.use("b"))
            await let_run()
            assert fleet.open == "a"
        assert await waiting is fleet.openers["b"].models[0]
        assert fleet.open == "b"
        assert fleet.most_open == 1

    asyncio.run(scenario())


def test_requests_that_wait_for_different_models_are_all_served():
    """One after another, as they came."""

    async def scenario() -> None:
        fleet = Fleet("abcd", max_open=1)
        async with fleet.pool.lease("a"):
            waiting = [asyncio.create_task(fleet.use(name)) for name in "bcdbcd"]
            await let_run()
        await asyncio.gather(*waiting)
        assert fleet.opened == "abcdbcd"
        assert fleet.most_open == 1

    asyncio.run(scenario())


def test_a_busy_model_does_not_take_back_the_room_it_has_made():
    """Else it would close and open for every one of its requests, and the other never open."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=1)
        leaving = await fleet.use("a")
        leaving.close_gate.clear()
        other = asyncio.create_task(fleet.use("b"))
        await asyncio.to_thread(leaving.closing.wait, DEADLINE_S)
        busy = asyncio.create_task(fleet.use("a"))
        await let_run()
        leaving.close_gate.set()
        await asyncio.gather(other, busy)
        assert fleet.opened == "aba"

    asyncio.run(scenario())


def test_a_model_that_closes_for_want_of_use_needs_no_other_to_make_room():
    """Its own place is free when it has closed."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=2)
        first = await fleet.use("a")
        async with fleet.pool.lease("b"):
            first.close_gate.clear()
            closing = asyncio.create_task(fleet.pool.unload_idle())
            await asyncio.to_thread(first.closing.wait, DEADLINE_S)
        again = asyncio.create_task(fleet.use("a"))
        await let_run()
        first.close_gate.set()
        await asyncio.gather(closing, again)
        assert fleet.opened == "aba"
        assert fleet.open == "ab"
        assert fleet.most_open == 2

    asyncio.run(scenario())


def test_a_request_waits_for_room_only_so_long():
    """The client is told what is short and to come back, and the others are left alone."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=1, load_wait_s=0.01)
        async with fleet.pool.lease("a") as held:
            with pytest.raises(ModelLoadingError, match="PLIMSOLL_MAX_OPEN_MODELS") as refused:
                await fleet.use("b")
            assert refused.value.retry_after_s > 0
            assert not held.closed.is_set()
        assert fleet.openers["b"].n_tries == 0
        assert fleet.open == "a"

    asyncio.run(scenario())


def test_a_request_that_goes_away_while_room_is_made_leaves_the_room():
    """Its client hung up; the model that was closing for it closes, and the next one opens."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=1)
        leaving = await fleet.use("a")
        leaving.close_gate.clear()
        request = asyncio.create_task(fleet.use("b"))
        await asyncio.to_thread(leaving.closing.wait, DEADLINE_S)
        request.cancel()
        await asyncio.wait([request])
        leaving.close_gate.set()
        await fleet.use("b")
        assert leaving.closed.is_set()
        assert fleet.most_open == 1

    asyncio.run(scenario())


def test_a_model_that_will_not_open_costs_no_other_its_place():
    """Every request for it would close a good model, for nothing."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=1)
        fleet.openers["b"].errors = [ModelDownloadError("the hub is away")]
        for _ in range(3):
            with pytest.raises(ModelDownloadError, match="the hub is away"):
                await fleet.use("b")
            await fleet.use("a")
        assert fleet.openers["b"].n_tries == 1
        assert len(fleet.openers["a"].models) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(10))
def test_in_any_order_no_more_are_open_than_may_be_and_none_closes_in_use(seed: int):
    """The two promises at once, over requests that overlap, fail and are cancelled."""
    chance = random.Random(seed)

    async def request(fleet: Fleet, name: str, n_turns: int) -> None:
        async with fleet.pool.lease(name) as model:
            for _ in range(n_turns):
                assert not model.closing.is_set()
                await asyncio.sleep(0)
            fleet.clock.now_s += 1

    async def scenario() -> None:
        fleet = Fleet("abcde", max_open=2)
        fleet.openers["e"].errors = [ModelDownloadError("the hub is away") for _ in range(3)]
        requests = []
        for _ in range(60):
            work = request(fleet, chance.choice("abcde"), chance.randrange(20))
            requests.append(asyncio.create_task(work))
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
            if chance.random() < 0.2:
                chance.choice(requests).cancel()
            if chance.random() < 0.1:
                await fleet.pool.unload_idle()
        ends = await asyncio.gather(*requests, return_exceptions=True)
        failures = [end for end in ends if isinstance(end, Exception)]
        assert all(isinstance(failure, ModelDownloadError) for failure in failures)
        assert fleet.most_open <= 2
        await fleet.pool.close()
        assert fleet.open == ""

    asyncio.run(scenario())


# --- giving back ----------------------------------------------------------------------------


def test_a_request_that_wants_the_model_closed_has_it_closed_at_its_end():
    """Its memory goes back at once, and it is counted why."""
    fleet = Fleet("ab")

    async def scenario() -> None:
        async with fleet.pool.lease("a", 0):
            assert fleet.open == "a"
        assert fleet.open == ""
        assert fleet.n_evicted("asked") == 1

    asyncio.run(scenario())


def test_a_model_that_another_request_uses_stays():
    """A client closes no model under the others; the last of them says what becomes of it."""
    fleet = Fleet("a")

    async def scenario() -> None:
        async with fleet.pool.lease("a") as model:
            async with fleet.pool.lease("a", 0):
                pass
            assert fleet.open == "a"
            assert not model.closed.is_set()
        assert fleet.open == "a"
        assert fleet.n_evicted("asked") == 0

    asyncio.run(scenario())


def test_under_pressure_idle_models_close_the_least_recently_used_first():
    """Memory is worth more than a model that no client asks for; the latest is the likeliest."""

    async def scenario() -> None:
        fleet = Fleet("abc", max_open=3)
        closed: list[str] = []

        def note(slot: ModelSlot, event: SlotEvent) -> None:
            if event is SlotEvent.CLOSED:
                closed.append(slot.name)

        fleet.pool.listen(note)
        await fleet.use("acb")
        n_closed = await fleet.pool.unload_idle()
        assert closed == ["a", "c", "b"]
        assert n_closed == 3 == fleet.n_evicted("pressure")

    asyncio.run(scenario())


def test_under_pressure_models_in_use_stay():
    """Requests under way are what memory is saved for."""

    async def scenario() -> None:
        fleet = Fleet("abc", max_open=3)
        async with fleet.pool.lease("a") as held:
            await fleet.use("b")
            assert await fleet.pool.unload_idle() == 1
            assert not held.closed.is_set()
        assert fleet.open == "a"

    asyncio.run(scenario())


def test_a_model_that_is_taken_while_others_close_stays():
    """Closing takes time, and requests come in during it."""

    async def scenario() -> None:
        fleet = Fleet("ab")
        first = await fleet.use("a")
        await fleet.use("b")
        first.close_gate.clear()
        unloading = asyncio.create_task(fleet.pool.unload_idle())
        await asyncio.to_thread(first.closing.wait, DEADLINE_S)
        async with fleet.pool.lease("b") as taken:
            first.close_gate.set()
            assert await unloading == 1
            assert not taken.closing.is_set()

    asyncio.run(scenario())


def test_each_model_has_an_idle_time_of_its_own():
    """One busy model must not keep the others in memory."""

    async def scenario() -> None:
        fleet = Fleet("ab", idle_unload_s=60)
        await fleet.use("ab")
        fleet.clock.now_s += 59
        for slot in fleet.pool.slots:
            await fleet.pool.look_after(slot)
        assert fleet.open == "b"
        assert fleet.n_evicted("idle") == 1

    asyncio.run(scenario())


class Jammed(FakeModel):
    """One whose closing ends in an error."""

    def close(self) -> None:
        super().close()
        raise OSError("something went wrong")


def test_the_watch_goes_on_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """If one error ended it, no model would ever be closed again."""
    monkeypatch.setattr(pool, "IDLE_CHECK_S", 0)

    async def scenario() -> None:
        fleet = Fleet("a", idle_unload_s=60)
        fleet.openers["a"].next_model = Jammed()
        watch = asyncio.create_task(fleet.pool.watch_idleness())
        for _ in range(2):  # the second model closes as it should
            await fleet.use("a")
            fleet.clock.now_s += 60
            await wait_for(lambda: fleet.open == "")
        watch.cancel()
        await asyncio.wait([watch])
        assert watch.cancelled()
        assert all(model.closed.is_set() for model in fleet.openers["a"].models)

    asyncio.run(scenario())
    assert [record.getMessage() for record in own_records(caplog)] == ["cannot look after a"]


def test_the_default_model_is_tried_again_unasked_where_it_would_not_open():
    """No request reaches a server that is not ready, so it must heal by itself."""

    async def scenario() -> None:
        fleet = Fleet("ab")
        for name in "ab":
            fleet.openers[name].errors = [ModelDownloadError("the network is down")]
            with pytest.raises(ModelDownloadError):
                await fleet.use(name)
        fleet.clock.now_s += RETRY_UNASKED_S - 1
        a, b = fleet.pool.slots
        for slot in (a, b):
            await fleet.pool.look_after(slot)
        assert a.state is ModelState.FAILED
        fleet.clock.now_s += 1
        for slot in (a, b):
            await fleet.pool.look_after(slot)
        assert a.state is ModelState.READY
        assert b.state is ModelState.FAILED  # requests for it are not held off: they try it again

    asyncio.run(scenario())


def test_a_model_whose_weights_were_changed_on_disk_is_opened_again_unasked():
    """Made again beside the requests, not in front of the next one."""

    async def scenario() -> None:
        fleet = Fleet("ab")
        await fleet.use("ab")
        b = fleet.pool.slots[1]
        fleet.openers["b"].models[0].damage = CacheCorruptError("cut")
        for slot in fleet.pool.slots:
            await fleet.pool.look_after(slot)
        assert b.state is ModelState.READY
        assert (fleet.openers["a"].n_tries, fleet.openers["b"].n_tries) == (1, 2)

    asyncio.run(scenario())


def test_closing_closes_every_model():
    """At the end of the server nothing stays mapped."""

    async def scenario() -> None:
        fleet = Fleet("abc", max_open=3)
        await fleet.use("abc")
        await fleet.pool.close()
        assert fleet.open == ""
        assert all(opener.models[0].closed.is_set() for opener in fleet.openers.values())

    asyncio.run(scenario())


def test_a_model_with_a_new_file_is_looked_at_and_may_be_asked_again():
    """Without a restart, and without a request that has to fail first."""

    async def scenario() -> None:
        fleet = Fleet("ab", max_open=1)
        slot, opener = fleet.pool.slots[1], fleet.openers["b"]
        opener.look_errors = [ModelNotFoundError("gone"), ModelUnsupportedError("odd")]
        await fleet.pool.look()
        assert slot.state is ModelState.FAILED
        await fleet.pool.look_after(slot)
        assert opener.n_looks == 1  # the same file says nothing new

        opener.file_is_new = True
        await fleet.pool.look_after(slot)
        assert (slot.state, str(slot.error)) == (ModelState.FAILED, "odd")
        await fleet.pool.look_after(slot)
        assert (slot.state, slot.error) == (ModelState.CLOSED, None)
        assert opener.n_tries == 0
        await fleet.use("b")

    asyncio.run(scenario())
