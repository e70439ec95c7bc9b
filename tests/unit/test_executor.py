"""The executor: which texts run together, within which limits, and what becomes of the others."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

from app.encoder.layout import PACK_TOKENS
from app.errors import EncodeMemoryError, MemoryPressureError
from app.serving import executor
from app.serving.executor import RunExecutor
from app.serving.runs import MOST_TEXTS, SMALL_PACK_TOKENS, WINDOW_TEXTS, RunLimits
from app.serving.scheduler import Plan
from app.telemetry import Telemetry
from tests.fakes import DEADLINE_S, FakeClock, FakeModel, metric
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic

PLENTY = 1 << 40
LONG_S = 3600.0  # nothing waits so long


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of a run that finds no memory."""
    monkeypatch.setattr(executor, "FIRST_PAUSE_S", 0)


def limits(
    parallelism: int = 8,
    *,
    threads: int = 1,
    step: int = 0,
    room_bytes: int = PLENTY,
    is_paused: bool = False,
) -> RunLimits:
    return RunLimits(Plan(parallelism, threads, step, (), ()), room_bytes, is_paused=is_paused)


PAUSED, NO_ROOM = limits(is_paused=True), limits(room_bytes=0)


class WatchedModel(FakeModel):
    """Keeps the options of every wave and tells what it is asked; `failure` may break a wave."""

    def __init__(
        self, failure: Callable[[Sequence[np.ndarray]], Exception | None] = lambda wave: None
    ) -> None:
        super().__init__()
        self.failure = failure
        self.options: list[dict[str, object]] = []
        self.asked: Queue[list[int]] = Queue()  # lengths whose bytes somebody wanted to know
        self.asked_options: list[dict[str, object]] = []

    @property
    def wave_sizes(self) -> list[int]:
        return [len(wave) for wave in self.waves]

    def wave_bytes(self, lengths: Sequence[int], **options: object) -> int:
        self.asked.put(list(lengths))
        self.asked_options.append(options)
        return super().wave_bytes(lengths)

    def encode(self, wave: Sequence[np.ndarray], **options: object) -> np.ndarray:
        names = ("n_threads", "pack_tokens", "drop_pages")
        self.options.append({name: options[name] for name in names})
        self.error = self.failure(wave)
        return super().encode(wave)

    async def was_asked_for(self, *lengths: int) -> None:
        while await asyncio.to_thread(self.asked.get, timeout=DEADLINE_S) != list(lengths):
            pass


def text(marker: int, n_tokens: int = 3) -> np.ndarray:
    return np.full(n_tokens, 100 + marker)


def expected(ids: np.ndarray) -> list[float]:
    """The fake model's vector of a text."""
    return [len(ids), ids.sum(), ids.max(), 1.0]


def run_executor(
    scenario: Callable[[RunExecutor], Coroutine[Any, Any, None]],
    *,
    allowed: RunLimits | None = None,
    telemetry: Telemetry | None = None,
    room_timeout_s: float = 0,
    **options: Any,
) -> None:
    """Run with an executor, which has room for everything if not told otherwise."""

    async def whole() -> None:
        runs = RunExecutor(
            telemetry or Telemetry("test"),
            allowed or limits(),
            room_timeout_s=room_timeout_s,
            **{"weights_stay": lambda model: True} | options,
        )
        runs.start()
        try:
            await asyncio.wait_for(scenario(runs), DEADLINE_S)
        finally:
            await asyncio.wait_for(asyncio.to_thread(runs.stop), DEADLINE_S)

    asyncio.run(whole())


async def queued(
    runs: RunExecutor, model: FakeModel, *texts: np.ndarray
) -> "asyncio.Task[list[np.ndarray]]":
    """A call whose texts stand in the queue."""
    task = asyncio.create_task(runs.encode(model, texts))
    await asyncio.sleep(0)
    return task


# --- what runs together ---------------------------------------------------------------------


@pytest.mark.parametrize("parallelism", [1, 2, 4, 8])
def test_a_run_has_as_many_tokens_as_the_plans_parallelism_allows(parallelism: int):
    """The plan is worth nothing if the engine gets something else; and no fewer than it may."""
    allowed = limits(parallelism)
    texts = [text(index, 100) for index in range(WINDOW_TEXTS)]
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        call = await queued(runs, model, *texts)
        runs.set_limits(allowed)
        np.testing.assert_array_equal(await call, [expected(ids) for ids in texts])

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S)
    most_tokens = allowed.most_tokens(drops_pages=False)
    sizes = [100 * n_texts for n_texts in model.wave_sizes]
    assert all(most_tokens - 100 < size <= most_tokens for size in sizes[:-1])
    assert sizes[-1] <= most_tokens


def test_texts_of_several_callers_share_a_run_and_those_of_several_models_do_not():
    """Each gets its own rows."""
    one, other = WatchedModel(), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        models = (one, one, other, one)
        calls = [await queued(runs, model, text(n)) for n, model in enumerate(models)]
        runs.set_limits(limits())
        rows = [row for call in calls for row in await call]
        np.testing.assert_array_equal(rows, [expected(text(n)) for n in range(4)])

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S)
    assert (one.wave_sizes, other.wave_sizes) == ([2, 1], [1])


def test_the_engine_works_with_the_plans_threads_and_packs():
    """The factor is what the executor really runs with, also after it has changed between runs;
    and memory was predicted for the same."""
    model = WatchedModel()
    plans = [limits(8, threads=3), limits(2, threads=2, step=1), limits(1), limits(4, threads=4)]

    async def scenario(runs: RunExecutor) -> None:
        for plan in plans:
            runs.set_limits(plan)
            await runs.encode(model, [text(5)])

    run_executor(scenario)
    assert model.options == [
        {"n_threads": 3, "pack_tokens": PACK_TOKENS, "drop_pages": False},
        {"n_threads": 2, "pack_tokens": SMALL_PACK_TOKENS, "drop_pages": False},
        {"n_threads": 1, "pack_tokens": SMALL_PACK_TOKENS, "drop_pages": False},
        {"n_threads": 4, "pack_tokens": PACK_TOKENS, "drop_pages": False},
    ]
    predicted = [{**options, "drop_pages": False} for options in model.asked_options]
    assert all(options in predicted for options in model.options)
    assert all(options in model.options for options in predicted)


def test_a_change_of_limits_leaves_the_run_under_way_alone_and_counts_for_the_next():
    """Both ways: pages are dropped from step 2 on, and kept again below it."""
    model = WatchedModel()
    model.released.clear()

    async def scenario(runs: RunExecutor) -> None:
        for step in (2, 0, 1):
            model.encoding.clear()
            call = await queued(runs, model, text(5))
            await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
            runs.set_limits(limits(step=step))
            model.released.set()
            await call
            model.released.clear()
        model.released.set()

    run_executor(scenario)
    assert [options["drop_pages"] for options in model.options] == [False, True, False]


def test_weights_that_may_not_stay_are_dropped_at_any_step():
    """A model half as large as the budget would leave no room for anything."""
    small, large = WatchedModel(), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        await runs.encode(small, [text(5)])
        await runs.encode(large, [text(5)])

    run_executor(scenario, weights_stay=lambda model: model is small)
    assert (small.options[0]["drop_pages"], large.options[0]["drop_pages"]) == (False, True)


def test_vectors_keep_their_bits_while_the_step_changes_under_a_request(tmp_path: Path):
    """Level 2 of the recovery gives the same vectors, so nobody has to know of it."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    random = np.random.default_rng(1)
    texts = [random.integers(104, TINY.vocab, n) for n in random.integers(2, 40, 400)]
    drops: list[bool] = []
    n_rows = 0

    with opened(small_settings(tmp_path, file, threads=2, exact=True)) as model:
        plain = model.encode(texts)
        encode = model.encode

        def watched(*arguments: Any, **options: Any) -> np.ndarray:
            drops.append(options["drop_pages"])
            return encode(*arguments, **options)

        async def scenario(runs: RunExecutor) -> None:
            def on_row(n_tokens: int) -> None:
                nonlocal n_rows
                n_rows += 1
                if n_rows in (50, 200):
                    runs.set_limits(limits(1, step=2) if n_rows == 50 else limits(8, threads=2))

            np.testing.assert_array_equal(await runs.encode(model, texts, on_row), plain)

        model.encode = watched  # type: ignore[method-assign]
        run_executor(scenario, allowed=limits(1))

    assert (drops[0], True in drops, drops[-1]) == (False, True, False)


# --- callers that have gone -----------------------------------------------------------------


def test_a_cancelled_call_drops_what_it_had_queued():
    """The engine's time belongs to those who still wait."""
    telemetry, model = Telemetry("test"), FakeModel()
    model.released.clear()
    ids = [text(index) for index in range(10 * MOST_TEXTS)]

    async def hang_up_during_the_first_wave(runs: RunExecutor) -> None:
        call = await queued(runs, model, *ids)
        await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        model.released.set()
        assert len(await runs.encode(model, ids[:2])) == 2

    run_executor(hang_up_during_the_first_wave, telemetry=telemetry)
    # The first wave was under way; after it came the two texts of the next caller alone.
    assert sum(len(wave) for wave in model.waves[1:]) == 2
    assert metric(telemetry.render().decode(), "plimsoll_queue_tokens") == 0


def test_a_cancelled_text_in_the_middle_of_the_queue_is_skipped():
    """Those around it still share a run."""
    telemetry, model = Telemetry("test"), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        first, gone, last = [await queued(runs, model, text(n)) for n in (1, 2, 3)]
        gone.cancel()
        await asyncio.wait([gone])
        runs.set_limits(limits())
        assert [len(await first), len(await last)] == [1, 1]

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, telemetry=telemetry)
    assert [[ids[0] for ids in wave] for wave in model.waves] == [[101, 103]]
    assert metric(telemetry.render().decode(), "plimsoll_queue_tokens") == 0


def test_a_call_queues_no_more_than_its_window():
    """A list of thousands must not stand before a single text of somebody else."""
    telemetry, model = Telemetry("test"), FakeModel()
    model.released.clear()
    ids = [text(index) for index in range(10 * MOST_TEXTS)]
    queued_tokens = 0.0

    async def look_at_the_queue(runs: RunExecutor) -> None:
        nonlocal queued_tokens
        call = await queued(runs, model, *ids)
        await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
        queued_tokens = metric(telemetry.render().decode(), "plimsoll_queue_tokens")
        model.released.set()
        assert len(await call) == len(ids)

    run_executor(look_at_the_queue, telemetry=telemetry)
    assert 0 < queued_tokens <= 3 * WINDOW_TEXTS


class HungUpUnder(FakeModel):
    """Somebody hangs up just while it says what a run takes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.hung_up = threading.Event(), threading.Event()

    def wave_bytes(self, lengths: Sequence[int], **options: object) -> int:
        self.asked.set()
        assert self.hung_up.wait(DEADLINE_S)
        return 0


def test_a_client_that_hangs_up_as_its_text_is_taken_does_not_end_the_engine():
    """A thread that dies of a run without texts would leave everybody waiting for ever."""
    leaving, staying = HungUpUnder(), FakeModel()

    async def scenario(runs: RunExecutor) -> None:
        request = await queued(runs, leaving, text(5))
        await asyncio.to_thread(leaving.asked.wait, DEADLINE_S)
        request.cancel()
        await asyncio.wait([request])
        leaving.hung_up.set()
        assert len(await runs.encode(staying, [text(5)])) == 1

    run_executor(scenario)
    assert leaving.waves == []


def test_an_event_loop_that_has_closed_does_not_end_the_engine():
    """Rows for it have nobody to go to; those of other loops do."""
    model = FakeModel()
    model.released.clear()
    runs = RunExecutor(
        Telemetry("test"), limits(), weights_stay=lambda model: True, room_timeout_s=0
    )

    async def leave_during_a_wave() -> None:
        await queued(runs, model, text(1))
        await asyncio.to_thread(model.encoding.wait, DEADLINE_S)

    async def ask_again() -> list[np.ndarray]:
        return await asyncio.wait_for(runs.encode(model, [text(2)]), DEADLINE_S)

    runs.start()
    try:
        asyncio.run(leave_during_a_wave())
        model.released.set()
        np.testing.assert_array_equal(asyncio.run(ask_again()), [expected(text(2))])
    finally:
        runs.stop()


# --- no room --------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [NO_ROOM, PAUSED], ids=["no room", "breaker open"])
def test_a_text_that_may_not_run_is_refused_after_the_timeout(allowed: RunLimits):
    """With numbers that somebody can act on, and without a trace in the queue."""
    telemetry, model = Telemetry("test"), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        with pytest.raises(MemoryPressureError, match="a text of 7 tokens waited 0 s"):
            await runs.encode(model, [text(5, 7)])
        runs.set_limits(limits())
        assert len(await runs.encode(model, [text(6)])) == 1

    run_executor(scenario, allowed=allowed, telemetry=telemetry)
    assert model.wave_sizes == [1]
    assert metric(telemetry.render().decode(), "plimsoll_queue_tokens") == 0


@pytest.mark.parametrize("room_bytes", [700, 699])
def test_a_text_waits_at_the_head_until_there_is_room_for_it(room_bytes: int):
    """Or until the breaker closes again; and a byte too few is no room."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        call = await queued(runs, model, text(5, 7))
        await model.was_asked_for(7)
        runs.set_limits(PAUSED)
        runs.set_limits(limits(room_bytes=room_bytes, threads=5))
        await model.was_asked_for(7)
        if room_bytes < 700:
            runs.set_limits(limits(threads=6))
        np.testing.assert_array_equal(await call, [expected(text(5, 7))])

    run_executor(scenario, allowed=NO_ROOM, room_timeout_s=LONG_S)
    assert [options["n_threads"] for options in model.options] == [5 if room_bytes == 700 else 6]


async def starving(runs: RunExecutor, model: WatchedModel, n_tokens: int) -> None:
    """The executor has found that a text of so many tokens has no room."""
    await model.was_asked_for(n_tokens)
    runs.set_limits(NO_ROOM)  # has to wait until it has looked to the end


def test_texts_that_wait_for_the_same_room_are_refused_together():
    """One after another, each with a timeout of its own, the last would wait for minutes."""
    model, clock = WatchedModel(), FakeClock()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(1, n)) for n in (3, 4, 5)]
        await starving(runs, model, 3)
        clock.now_s += LONG_S
        runs.set_limits(NO_ROOM)
        for call in calls:
            with pytest.raises(MemoryPressureError):
                await call

    run_executor(scenario, allowed=NO_ROOM, room_timeout_s=LONG_S, clock=clock)


def test_a_text_that_came_later_has_its_own_time_to_wait():
    """It is not refused for the patience of the one before it."""
    model, clock = WatchedModel(), FakeClock()

    async def scenario(runs: RunExecutor) -> None:
        first = await queued(runs, model, text(1, 3))
        await starving(runs, model, 3)
        clock.now_s += LONG_S - 1
        second = await queued(runs, model, text(2, 4))
        clock.now_s += 1
        runs.set_limits(NO_ROOM)
        with pytest.raises(MemoryPressureError):
            await first
        runs.set_limits(limits())
        assert len(await second) == 1

    run_executor(scenario, allowed=NO_ROOM, room_timeout_s=LONG_S, clock=clock)


# --- the end --------------------------------------------------------------------------------


def test_stopping_finishes_what_is_queued():
    """A deployment is no reason to fail requests."""
    model = WatchedModel()
    model.released.clear()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n)) for n in range(3)]
        stopping = asyncio.create_task(asyncio.to_thread(runs.stop))
        model.released.set()
        await stopping
        assert [len(await call) for call in calls] == [1, 1, 1]
        with pytest.raises(asyncio.CancelledError):
            await runs.encode(model, [text(5)])

    run_executor(scenario)


@pytest.mark.parametrize("allowed", [NO_ROOM, PAUSED], ids=["no room", "breaker open"])
def test_stopping_does_not_wait_for_room(allowed: RunLimits):
    """It may never come, and whoever stops a server waits seconds, not minutes."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n)) for n in range(3)]
        await asyncio.to_thread(runs.stop)
        for call in calls:
            with pytest.raises(MemoryPressureError):
                await call

    run_executor(scenario, allowed=allowed, room_timeout_s=LONG_S)
    assert model.waves == []


def test_stopping_does_not_wait_for_the_pause_before_a_retry(monkeypatch: pytest.MonkeyPatch):
    """The texts are tried at once instead."""
    monkeypatch.setattr(executor, "FIRST_PAUSE_S", LONG_S)
    errors = [EncodeMemoryError("no memory"), None]
    model = WatchedModel(lambda wave: errors.pop(0))

    async def scenario(runs: RunExecutor) -> None:
        call = await queued(runs, model, text(5))
        await asyncio.to_thread(model.releasing.wait, DEADLINE_S)
        await asyncio.to_thread(runs.stop)
        np.testing.assert_array_equal(await call, [expected(text(5))])

    run_executor(scenario)
