"""One model's life: opening once, failing, closing, healing."""

import asyncio
import gc
import weakref
from contextlib import suppress
from dataclasses import replace
from math import inf

import pytest

from plimsoll.errors import CacheCorruptError, ModelDownloadError, ModelLoadingError
from plimsoll.models.slot import (
    LOADING_RETRY_S,
    RETRY_PAUSE_S,
    SOURCE_LOOK_S,
    ModelSlot,
    ModelState,
    SlotEvent,
)
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import DEADLINE_S, FakeClock, FakeOpener, fake_slot, metric
from tests.logged import own_records


async def use(slot: ModelSlot) -> object:
    """Hold the model for a moment; returns it."""
    async with slot.lease() as model:
        return model


def test_twenty_requests_at_once_open_the_model_once():
    """Twenty loads at once would need twenty times the memory."""
    opener = FakeOpener()
    opener.released.clear()

    async def scenario() -> list[object]:
        slot = fake_slot(opener)
        users = [asyncio.create_task(use(slot)) for _ in range(20)]
        await asyncio.to_thread(opener.opening.wait, DEADLINE_S)
        assert slot.state is ModelState.LOADING
        opener.released.set()
        return await asyncio.gather(*users)

    models = asyncio.run(scenario())

    assert opener.n_tries == 1
    assert set(models) == {opener.models[0]}


def test_a_load_that_outlasts_one_request_serves_the_next():
    """The wait ends, the load goes on."""
    opener = FakeOpener()
    opener.released.clear()

    async def scenario() -> None:
        slot = fake_slot(opener)
        with pytest.raises(ModelLoadingError) as refused:
            async with slot.lease(wait_s=0.01):
                pass
        assert refused.value.retry_after_s > 0
        opener.released.set()
        assert await use(slot) is opener.models[0]

    asyncio.run(scenario())
    assert opener.n_tries == 1


def test_who_waits_for_a_model_is_told_how_long_its_loading_will_take():
    """A conversion takes minutes on a small machine; two retries of 5 s would be over by then."""
    opener = FakeOpener()
    opener.released.clear()
    clock = FakeClock()

    async def refused(slot: ModelSlot) -> float:
        with pytest.raises(ModelLoadingError) as error:
            async with slot.lease(wait_s=0.01):
                pass
        return error.value.retry_after_s

    async def scenario() -> None:
        slot = fake_slot(opener, clock=clock)
        loading = asyncio.create_task(use(slot))
        async with asyncio.timeout(DEADLINE_S):
            while slot.progress != (25, 100):
                await asyncio.sleep(0.001)
        assert await refused(slot) == LOADING_RETRY_S
        clock.now_s += 30
        assert await refused(slot) == pytest.approx(90)
        opener.released.set()
        await loading

    asyncio.run(scenario())


def test_a_model_that_would_not_open_is_tried_again_after_a_pause():
    """Not for every request that comes in: each try may cost a download."""
    opener = FakeOpener(ModelDownloadError("the hub is away"))
    clock = FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, clock=clock)
        for _ in range(3):
            with pytest.raises(ModelDownloadError, match="the hub is away"):
                await use(slot)
        assert opener.n_tries == 1
        assert slot.state is ModelState.FAILED
        clock.now_s += RETRY_PAUSE_S
        await use(slot)
        assert slot.state is ModelState.READY
        assert slot.error is None

    asyncio.run(scenario())
    assert opener.n_tries == 2


def test_an_error_that_is_told_many_times_does_not_pile_up_what_its_hearers_held():
    """The same error goes to all who ask in the pause, and a traceback keeps frames alive."""
    opener = FakeOpener(ModelDownloadError("the hub is away"))

    class Body:
        """Stands for what a request holds."""

    async def request(slot: ModelSlot) -> weakref.ref:
        body = Body()
        with suppress(ModelDownloadError):
            async with slot.lease():
                pass
        return weakref.ref(body)

    async def scenario() -> list[weakref.ref]:
        slot = fake_slot(opener)
        return [await request(slot) for _ in range(5)]

    bodies = asyncio.run(scenario())
    gc.collect()
    assert [body() for body in bodies[:-1]] == [None] * 4


def test_an_idle_model_closes_and_the_next_request_opens_it_again():
    """Memory goes back to the machine; the client notices a moment's delay at most."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=60, clock=clock)
        async with slot.lease():
            pass
        clock.now_s += 59
        await slot.check_idleness()
        assert slot.state is ModelState.READY
        clock.now_s += 1
        await slot.check_idleness()
        assert opener.models[0].closed.is_set()
        assert slot.state is ModelState.CLOSED
        async with slot.lease() as model:
            assert model is opener.models[1]

    asyncio.run(scenario())


def test_a_model_in_use_is_not_idle_however_long_it_takes():
    """A long list may take longer than the idle time."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=60, clock=clock)
        async with slot.lease() as model:
            clock.now_s += 1000
            await slot.check_idleness()
            assert not model.closed.is_set()
        await slot.check_idleness()
        assert slot.state is ModelState.READY  # the time counts from its end

    asyncio.run(scenario())


def test_an_idle_time_of_zero_never_closes():
    """An operator who wants it open always has a way to say so."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=0, clock=clock)
        async with slot.lease():
            pass
        clock.now_s += 1e9
        await slot.check_idleness()
        assert slot.state is ModelState.READY

    asyncio.run(scenario())


def test_the_last_request_says_how_long_the_model_stays_open():
    """A client may want it longer or shorter than the operator's time; the next one that says
    nothing gets that again."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=60, clock=clock)

        async def closes_after(idle_s: float, keep_alive_s: float | None) -> bool:
            async with slot.lease(keep_alive_s=keep_alive_s):
                pass
            clock.now_s += idle_s
            await slot.check_idleness()
            return slot.state is ModelState.CLOSED

        assert not await closes_after(1e9, inf)
        assert not await closes_after(300, 301)
        assert not await closes_after(59, None)
        assert await closes_after(60, None)
        assert await closes_after(5, 5)

    asyncio.run(scenario())


def test_an_idle_model_keeps_what_its_runs_left_behind():
    """That is asked for elsewhere, of the thread that has the runs: a slot would not know whether
    one is under way."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=60, clock=clock)
        await use(slot)
        clock.now_s += 59
        await slot.check_idleness()

    asyncio.run(scenario())
    assert opener.models[0].n_releases == 0


def test_a_damaged_model_closes_with_the_last_request_that_holds_it():
    """Unmapping under a request that computes would crash the process."""
    opener = FakeOpener()

    async def scenario() -> None:
        slot = fake_slot(opener)
        async with slot.lease() as damaged:
            with pytest.raises(CacheCorruptError):
                async with slot.lease():
                    raise CacheCorruptError("bits rot")
            assert not damaged.closed.is_set()
            with pytest.raises(ModelLoadingError, match="damaged"):
                async with slot.lease():
                    pass
        assert damaged.closed.is_set()
        async with slot.lease() as healed:
            assert healed is opener.models[1]

    asyncio.run(scenario())


def test_an_unused_model_whose_weights_were_changed_on_disk_closes():
    """What is read of a file that has been cut kills the process."""
    opener = FakeOpener()

    async def scenario() -> None:
        slot = fake_slot(opener)
        async with slot.lease():
            pass
        assert not await slot.check_files()
        opener.models[0].damage = CacheCorruptError("cut to 10 bytes")
        assert await slot.check_files()
        assert opener.models[0].closed.is_set()
        assert slot.damage == "cut to 10 bytes"
        async with slot.lease():
            assert slot.damage is None

    asyncio.run(scenario())


def test_a_model_in_use_whose_weights_were_changed_takes_no_more_requests():
    """The ones that hold it fail at their next layer; then it closes."""
    opener = FakeOpener()

    async def scenario() -> None:
        slot = fake_slot(opener)
        async with slot.lease() as model:
            model.damage = CacheCorruptError("cut to 10 bytes")
            assert not await slot.check_files()
            with pytest.raises(ModelLoadingError, match="being made again"):
                slot.refuse_unusable()
            assert not model.closed.is_set()
        assert model.closed.is_set()

    asyncio.run(scenario())


def test_a_file_that_was_replaced_under_the_server_is_told_once(
    caplog: pytest.LogCaptureFixture,
):
    """Its vectors stay; whoever replaced it has to know that."""
    opener, clock = FakeOpener(), FakeClock()

    async def look(slot: ModelSlot) -> None:
        clock.now_s += SOURCE_LOOK_S
        await slot.check_files()

    async def scenario() -> None:
        slot = fake_slot(opener, clock=clock)
        async with slot.lease():
            pass
        await look(slot)
        assert slot.source_change is None
        opener.change = "its file has changed"
        for _ in range(3):
            await look(slot)
        assert slot.source_change == "its file has changed"
        opener.change = None  # it was put back
        await look(slot)
        assert slot.source_change is None

    asyncio.run(scenario())
    told = [r for r in own_records(caplog) if "its file has changed" in r.getMessage()]
    assert len(told) == 1


def test_closing_waits_for_an_opening_under_way():
    """A model that opened after the server's end would never be closed."""
    opener = FakeOpener()
    opener.released.clear()

    async def scenario() -> None:
        slot = fake_slot(opener)
        user = asyncio.create_task(use(slot))
        await asyncio.to_thread(opener.opening.wait, DEADLINE_S)
        user.cancel()
        closing = asyncio.create_task(slot.close())
        opener.released.set()
        await closing
        await asyncio.wait([user])

    asyncio.run(scenario())
    assert opener.models[0].closed.is_set()


def test_a_request_that_goes_away_does_not_leave_a_model_half_closed():
    """The last to hold a damaged model closes it, also when its client has hung up by then."""
    opener = FakeOpener()

    async def scenario() -> None:
        slot = fake_slot(opener)
        model = await use(slot)
        model.close_gate.clear()
        closing = asyncio.create_task(slot.close())
        await asyncio.to_thread(model.closing.wait, DEADLINE_S)
        closing.cancel()
        with suppress(asyncio.CancelledError):
            await closing
        assert slot.holds_memory
        model.close_gate.set()
        await slot.close()
        assert model.closed.is_set()
        assert not slot.holds_memory

    asyncio.run(scenario())


def test_a_model_opens_again_only_when_it_has_wholly_closed():
    """Two of one model at once would need twice its memory."""
    opener = FakeOpener()

    async def scenario() -> None:
        slot = fake_slot(opener)
        first = await use(slot)
        first.close_gate.clear()
        closing = asyncio.create_task(slot.close())
        await asyncio.to_thread(first.closing.wait, DEADLINE_S)
        with pytest.raises(ModelLoadingError):
            async with slot.lease(wait_s=0.01):
                pass
        assert opener.n_tries == 1
        first.close_gate.set()
        assert await use(slot) is opener.models[1]
        await closing

    asyncio.run(scenario())


def test_a_model_that_has_just_opened_is_not_idle_while_a_request_waits_for_it():
    """Between the two, room for another model could be made of it."""

    async def scenario() -> list[tuple[SlotEvent, bool]]:
        slot = fake_slot(FakeOpener())
        told: list[tuple[SlotEvent, bool]] = []
        slot.listen(lambda slot, event: told.append((event, slot.is_idle)))
        await use(slot)
        return told

    assert asyncio.run(scenario()) == [(SlotEvent.OPENED, False), (SlotEvent.FREE, True)]


def test_listeners_hear_of_every_opening_and_closing_and_find_the_slot_changed():
    """Memory at rest is measured anew then; one that heard too early would measure the old."""

    async def scenario() -> list[tuple[SlotEvent, ModelState, bool]]:
        slot = fake_slot(FakeOpener())
        told: list[tuple[SlotEvent, ModelState, bool]] = []
        slot.listen(lambda slot, event: told.append((event, slot.state, slot.holds_memory)))
        for _ in range(2):
            await use(slot)
            await slot.close()
        return told

    once = [
        (SlotEvent.OPENED, ModelState.READY, True),
        (SlotEvent.FREE, ModelState.READY, True),
        (SlotEvent.CLOSED, ModelState.CLOSED, False),
    ]
    assert asyncio.run(scenario()) == once * 2


def test_an_opening_that_fails_is_told_as_a_closing():
    """It held memory while it tried; another model may wait for that."""

    async def scenario() -> list[tuple[SlotEvent, bool]]:
        slot = fake_slot(FakeOpener(ModelDownloadError("the hub is away")))
        told: list[tuple[SlotEvent, bool]] = []
        slot.listen(lambda slot, event: told.append((event, slot.holds_memory)))
        with pytest.raises(ModelDownloadError):
            await use(slot)
        return told

    assert asyncio.run(scenario()) == [(SlotEvent.CLOSED, False), (SlotEvent.FREE, False)]


def test_a_closed_model_leaves_its_memory_to_others():
    """What holds on to the object keeps its vocabulary and sessions, even without weights."""
    opener = FakeOpener()

    async def scenario() -> None:
        slot = fake_slot(opener)
        closed = weakref.ref(await use(slot))
        await slot.close()
        opener.models.clear()
        gc.collect()
        assert closed() is None
        assert slot.state is ModelState.CLOSED

    asyncio.run(scenario())


def test_what_a_model_is_like_is_known_after_it_has_closed(caplog: pytest.LogCaptureFixture):
    """Health describes it without opening it, and an operator who swaps its file hears of it."""
    opener = FakeOpener()

    async def scenario() -> None:
        slot = fake_slot(opener)
        assert slot.traits is None
        for _ in range(2):
            await use(slot)
            await slot.close()
        assert slot.traits is opener.models[1].traits
        assert "other vectors" not in caplog.text
        traits = opener.next_model.traits
        opener.next_model.traits = replace(traits, content_sha256="99")
        await use(slot)

    asyncio.run(scenario())
    assert "fake now gives other vectors" in caplog.text


def test_the_gauge_counts_open_models():
    """One model's end must not hide another one that is open."""
    telemetry = Telemetry("test")

    async def scenario() -> list[float]:
        slots = [fake_slot(FakeOpener(), telemetry=telemetry) for _ in range(2)]
        counts = []
        for act in (use(slots[0]), use(slots[1]), slots[0].close(), slots[1].close()):
            await act
            counts.append(metric(telemetry.render().decode(), "plimsoll_model_open"))
        return counts

    assert asyncio.run(scenario()) == [1, 2, 1, 0]
