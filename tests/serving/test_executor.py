"""The executor: which texts run together, within which limits, and what becomes of the others."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

from plimsoll.encoder.layout import PACK_TOKENS
from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.errors import EncodeMemoryError, MemoryPressureError
from plimsoll.policy import runs as run_policy
from plimsoll.policy.client_limits import ClientAccount, ClientLimits
from plimsoll.policy.costs import WINDOW_TEXTS
from plimsoll.policy.runs import MOST_TEXTS, RunEnded, RunLimits
from plimsoll.policy.scheduler import Plan
from plimsoll.serving.clients import serving_client
from plimsoll.serving.executor import RunExecutor
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import DEADLINE_S, HIDDEN, FakeClock, FakeModel, metric
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic

PLENTY = 1 << 40
LONG_S = 3600.0  # nothing waits so long


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of a run that finds no memory."""
    monkeypatch.setattr(run_policy, "FIRST_PAUSE_S", 0)


def limits(
    parallelism: int = 8,
    *,
    threads: int = 1,
    step: int = 0,
    room_bytes: int = PLENTY,
    **options: Any,
) -> RunLimits:
    return RunLimits(Plan(parallelism, threads, step, (), ()), room_bytes, **options)


PAUSED, NO_ROOM, STILL_NO_ROOM = limits(is_paused=True), limits(room_bytes=0), limits(room_bytes=1)


class WatchedModel(FakeModel):
    """Keeps the options of every run and tells what it is asked; `failure` may break a run."""

    def __init__(
        self, failure: Callable[[Sequence[np.ndarray]], Exception | None] = lambda texts: None
    ) -> None:
        super().__init__()
        self.failure = failure
        self.options: list[dict[str, object]] = []
        self.asked: Queue[list[int]] = Queue()  # lengths whose bytes were asked for
        self.asked_options: list[dict[str, object]] = []
        self.kept_layers: object = None  # of the last run

    @property
    def run_sizes(self) -> list[int]:
        return [len(texts) for texts in self.runs]

    def run_bytes(self, lengths: Sequence[int], **options: object) -> int:
        self.asked.put(list(lengths))
        self.asked_options.append(options)
        return super().run_bytes(lengths)

    def encode(self, texts: Sequence[np.ndarray], **options: object) -> np.ndarray:
        names = ("n_threads", "pack_tokens", "drop_pages")
        self.options.append({name: options[name] for name in names})
        self.kept_layers = options["kept_layers"]
        self.error = self.failure(texts)
        return super().encode(texts)

    async def was_asked_for(self, *lengths: int) -> None:
        while await asyncio.to_thread(self.asked.get, timeout=DEADLINE_S) != list(lengths):
            pass


def text(marker: int, n_tokens: int = 3) -> np.ndarray:
    return np.full(n_tokens, 100 + marker)


def expected(ids: np.ndarray, dimensions: int = HIDDEN) -> np.ndarray:
    """The fake model's vector of a text, cut and normalised."""
    vector = np.array([len(ids), ids.sum(), ids.max(), 1.0])[:dimensions]
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class Watcher:
    """Is told of the engine's runs, and keeps it."""

    def __init__(self) -> None:
        self.told: list[int | RunEnded] = []

    def run_began(self, n_bytes: int) -> None:
        self.told.append(n_bytes)

    def run_takes(self, n_bytes: int) -> None:
        self.told.append(n_bytes)

    def run_ended(self, run: RunEnded) -> None:
        self.told.append(run)

    def wake(self) -> None:
        """Nothing waits for it here."""

    @property
    def ended(self) -> list[RunEnded]:
        return [each for each in self.told if isinstance(each, RunEnded)]

    async def saw(self, n_runs: int) -> None:
        """So many have ended; a watcher hears of it just after the rows have come."""
        while len(self.ended) < n_runs:
            await asyncio.sleep(0)


def executor_of(telemetry: Telemetry, allowed: RunLimits, **options: Any) -> RunExecutor:
    """An executor that records in `telemetry`; not started."""
    families = telemetry.engine, telemetry.requests, telemetry.pressure
    return RunExecutor(*families, allowed, **options)


def run_executor(
    scenario: Callable[[RunExecutor], Coroutine[Any, Any, None]],
    *,
    allowed: RunLimits | None = None,
    telemetry: Telemetry | None = None,
    room_timeout_s: float = 0,
    watcher: Watcher | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    **options: Any,
) -> None:
    """Run with an executor, which has room for everything if not told otherwise."""

    async def whole() -> None:
        runs = executor_of(
            telemetry or Telemetry("test"),
            allowed or limits(),
            room_timeout_s=room_timeout_s,
            **options,
        )
        runs.start(watcher or Watcher())
        try:
            await asyncio.wait_for(scenario(runs), DEADLINE_S)
        finally:
            await asyncio.wait_for(asyncio.to_thread(runs.stop), DEADLINE_S)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(whole())


async def encode(runs: RunExecutor, model: FakeModel, *texts: np.ndarray) -> list[np.ndarray]:
    """Vectors of these texts, uncut."""
    return await runs.encode(model, texts, HIDDEN)


async def queued(
    runs: RunExecutor, model: FakeModel, *texts: np.ndarray, client: ClientAccount | None = None
) -> "asyncio.Task[list[np.ndarray]]":
    """A call whose texts stand in the queue."""
    with nullcontext() if client is None else serving_client(client):
        task = asyncio.create_task(encode(runs, model, *texts))
    await asyncio.sleep(0)
    return task


# --- what runs together ---------------------------------------------------------------------


def test_texts_whose_tokens_are_all_wanted_run_by_themselves():
    """The engine pools a run or does not; vectors of either length come from one."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        forms = ("unit", "tokens", "pooled", "tokens")
        calls = [
            asyncio.create_task(runs.encode(model, [text(marker)], HIDDEN, form=form))
            for marker, form in enumerate(forms)
        ]
        await asyncio.sleep(0)
        runs.set_limits(limits())
        (unit,), (states,), (pooled,), (others,) = await asyncio.gather(*calls)
        np.testing.assert_array_equal(unit, expected(text(0)))
        np.testing.assert_array_equal(states, [[3, 303, 101, 1]] * 3)
        np.testing.assert_array_equal(pooled, [3, 306, 102, 1])
        np.testing.assert_array_equal(others, [[3, 309, 103, 1]] * 3)

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S)
    markers = [sorted(ids[0] - 100 for ids in run) for run in model.runs]
    assert sorted(markers) == [[0, 2], [1, 3]]


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
    sizes = [100 * n_texts for n_texts in model.run_sizes]
    assert all(most_tokens - 100 < size <= most_tokens for size in sizes[:-1])
    assert sizes[-1] <= most_tokens


def test_a_client_of_many_requests_has_no_more_turns_than_one_of_a_single_request():
    """Else the one that opens the most connections would have the engine for itself."""
    greedy, modest = (ClientAccount(ClientLimits(), FakeClock()) for _ in range(2))
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        calls = [
            await queued(runs, model, *(text(10 * n + i, 100) for i in range(3)), client=greedy)
            for n in range(8)
        ]
        calls.append(
            await queued(runs, model, *(text(500 + i, 100) for i in range(3)), client=modest)
        )
        runs.set_limits(limits(1))
        await asyncio.gather(*calls)

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S)
    order = [ids[0] >= 600 for run in model.runs for ids in run]
    assert order[:6] == [False, True] * 3
    assert len(order) == 27


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
    assert (one.run_sizes, other.run_sizes) == ([3], [1])


def test_the_engine_works_with_the_plans_threads_and_packs():
    """The factor is what the executor really runs with, also after it has changed between runs;
    and memory was predicted for the same."""
    model = WatchedModel()
    plans = [limits(8, threads=3), limits(2, threads=2, step=1), limits(1), limits(4, threads=4)]

    async def scenario(runs: RunExecutor) -> None:
        for plan in plans:
            runs.set_limits(plan)
            await encode(runs, model, text(5))

    run_executor(scenario)
    assert model.options == [
        {"n_threads": 3, "pack_tokens": PACK_TOKENS, "drop_pages": False},
        {"n_threads": 2, "pack_tokens": PACK_TOKENS // 2, "drop_pages": False},
        {"n_threads": 1, "pack_tokens": PACK_TOKENS // 2, "drop_pages": False},
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
    small.weights_bytes, large.weights_bytes = 1000, 1001

    async def scenario(runs: RunExecutor) -> None:
        await encode(runs, small, text(5))
        await encode(runs, large, text(5))

    run_executor(scenario, allowed=limits(resident_bytes=1000))
    assert (small.options[0]["drop_pages"], large.options[0]["drop_pages"]) == (False, True)


def test_vectors_keep_their_bits_while_the_step_changes_under_a_request(tmp_path: Path):
    """Level 2 of the recovery gives the same vectors, so no client has to know of it."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    random = np.random.default_rng(1)
    texts = [random.integers(104, TINY.vocab, n) for n in random.integers(2, 40, 400)]
    drops: list[bool] = []
    n_rows = 0

    with opened(small_settings(tmp_path, file, threads=2)) as model:
        plain = model.finish(model.encode(texts), TINY.hidden)
        run = model.encode

        def watched(*arguments: Any, **options: Any) -> np.ndarray:
            drops.append(options["drop_pages"])
            return run(*arguments, **options)

        async def scenario(runs: RunExecutor) -> None:
            def on_row(n_tokens: int) -> None:
                nonlocal n_rows
                n_rows += 1
                if n_rows in (50, 200):
                    runs.set_limits(limits(1, step=2) if n_rows == 50 else limits(8, threads=2))

            rows = await runs.encode(model, texts, TINY.hidden, on_row)
            np.testing.assert_array_equal(rows, plain)

        model.encode = watched  # type: ignore[method-assign]
        run_executor(scenario, allowed=limits(1))

    assert (drops[0], True in drops, drops[-1]) == (False, True, False)


@pytest.mark.parametrize(("kept_bytes", "n_layers"), [(None, None), (0, 0), (350, 1), (9999, 4)])
def test_layers_that_are_to_stay_are_named_to_the_engine(
    kept_bytes: int | None, n_layers: int | None
):
    """As many as fit beside two that are under way; the pages of all others are dropped then."""
    model = WatchedModel()
    model.sizes = WeightSizes(weights_bytes=400, layer_bytes=100, n_layers=4)

    async def scenario(runs: RunExecutor) -> None:
        await encode(runs, model, text(5))

    run_executor(scenario, allowed=limits(kept_bytes=kept_bytes))
    assert model.kept_layers == n_layers
    assert model.options[0]["drop_pages"] is (kept_bytes is not None)


# --- what comes back ------------------------------------------------------------------------


def test_texts_of_one_run_are_cut_each_as_its_caller_asked():
    """A run serves several requests, and each has its own number of dimensions."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        sizes = (2, 4, 2, 3)
        calls = [
            asyncio.create_task(runs.encode(model, [text(n)], dimensions))
            for n, dimensions in enumerate(sizes)
        ]
        await asyncio.sleep(0)
        runs.set_limits(limits())
        for n, dimensions in enumerate(sizes):
            (row,) = await calls[n]
            assert row.dtype == np.float32
            np.testing.assert_array_equal(row, expected(text(n), dimensions))

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S)
    assert model.run_sizes == [4]


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread wakes it."""

    n_wakings = 0

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> asyncio.Handle:
        self.n_wakings += 1
        return super().call_soon_threadsafe(*arguments, **options)


def test_a_run_of_many_texts_wakes_the_event_loop_as_often_as_one_of_a_single_text():
    """Each waking takes the interpreter's lock from the engine and costs the loop a turn."""
    model, watcher = WatchedModel(), Watcher()
    wakings: list[int] = []

    async def scenario(runs: RunExecutor) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        for n_runs, n_texts in enumerate((1, MOST_TEXTS), start=1):
            before = loop.n_wakings
            call = await queued(runs, model, *(text(n) for n in range(n_texts)))
            runs.set_limits(limits())
            await call
            await watcher.saw(n_runs)
            wakings.append(loop.n_wakings - before)
            runs.set_limits(PAUSED)

    run_executor(
        scenario,
        allowed=PAUSED,
        room_timeout_s=LONG_S,
        watcher=watcher,
        loop_factory=CountingLoop,
    )
    assert model.run_sizes == [1, MOST_TEXTS]
    assert wakings[0] == wakings[1] > 0


def test_a_run_is_told_as_it_begins_and_as_it_ends():
    """Governor, evidence and metrics read this record; nothing else tells them."""
    model, watcher, clock = WatchedModel(), Watcher(), FakeClock()
    model.released.clear()

    async def scenario(runs: RunExecutor) -> None:
        call = await queued(runs, model, text(1, 3), text(2, 7))
        runs.set_limits(limits(2, threads=3))
        await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
        await asyncio.sleep(0)
        assert watcher.told == [1000]  # before the engine takes them
        clock.now_s += 2.5
        model.released.set()
        await call
        await watcher.saw(1)

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, watcher=watcher, clock=clock)
    (run,) = watcher.ended
    assert run == RunEnded(
        n_texts=2,
        n_tokens=10,
        longest_tokens=7,
        n_threads=3,
        pack_tokens=PACK_TOKENS // 2,
        predicted_bytes=1000,
        grown_bytes=run.grown_bytes,  # of this process, as the kernel says
        seconds=2.5,
        n_retries=0,
    )


def test_the_model_that_ran_last_is_known_while_it_is_there_and_not_kept_for_it():
    """Evidence looks at its weights; a model that has closed has to leave its memory to others."""

    async def scenario(runs: RunExecutor) -> None:
        assert runs.last_model is None
        model = WatchedModel()
        await encode(runs, model, text(5))
        assert runs.last_model is model
        await encode(runs, FakeModel(), text(5))  # its traces take the place of the first's
        del model
        while gc.collect() or runs.last_model is not None:
            await asyncio.sleep(0)

    run_executor(scenario)


# --- giving memory back ---------------------------------------------------------------------


def test_memory_is_given_back_between_runs_and_asking_does_not_wait():
    """Not in the midst of a run, which uses it; and the control loop that asks has a second."""
    model = WatchedModel()
    model.released.clear()

    async def scenario(runs: RunExecutor) -> None:
        call = await queued(runs, model, text(5))
        await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
        runs.release_memory()
        runs.release_memory()
        assert model.n_releases == 0
        model.released.set()
        await call
        await asyncio.to_thread(model.releasing.wait, DEADLINE_S)
        await encode(runs, model, text(6))
        assert model.n_releases == 1

    run_executor(scenario)


def test_only_models_that_have_run_since_give_memory_back():
    """A second time there is nothing to find, and it takes tens of milliseconds."""
    ran, other, idle = WatchedModel(), WatchedModel(), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        async def given_back(*models: WatchedModel) -> list[int]:
            runs.release_memory()
            await encode(runs, idle, text(1))  # comes after it
            return [model.n_releases for model in models]

        await encode(runs, ran, text(5))
        await encode(runs, other, text(5))
        assert await given_back(ran, other, idle) == [1, 1, 0]
        assert await given_back(ran, other, idle) == [1, 1, 1]
        await encode(runs, ran, text(5))
        assert await given_back(ran, other) == [2, 1]

    run_executor(scenario)


@pytest.mark.parametrize("error", [EncodeMemoryError("no memory"), ZeroDivisionError()])
def test_giving_memory_back_may_fail_between_runs_and_the_engine_goes_on(error: Exception):
    """It runs a small graph itself. A thread that dies of it would leave all requests waiting."""
    model = WatchedModel()
    model.release_error = error

    async def scenario(runs: RunExecutor) -> None:
        await encode(runs, model, text(5))
        runs.release_memory()
        await asyncio.to_thread(model.releasing.wait, DEADLINE_S)
        np.testing.assert_array_equal(await encode(runs, model, text(6)), [expected(text(6))])

    run_executor(scenario)


# --- callers that have gone -----------------------------------------------------------------


def test_a_cancelled_call_drops_what_it_had_queued():
    """The engine's time belongs to those who still wait."""
    telemetry, model = Telemetry("test"), FakeModel()
    model.released.clear()
    ids = [text(index) for index in range(10 * MOST_TEXTS)]

    async def hang_up_during_the_first_run(runs: RunExecutor) -> None:
        call = await queued(runs, model, *ids)
        await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        model.released.set()
        assert len(await encode(runs, model, *ids[:2])) == 2

    run_executor(hang_up_during_the_first_run, telemetry=telemetry)
    # The first run was under way; after it came the two texts of the next caller alone.
    assert sum(len(texts) for texts in model.runs[1:]) == 2
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
    assert [[ids[0] for ids in texts] for texts in model.runs] == [[101, 103]]
    assert metric(telemetry.render().decode(), "plimsoll_queue_tokens") == 0


def test_a_call_queues_no_more_than_its_window():
    """A list of thousands must not stand before a single text of another request."""
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
    """A client hangs up just while it says what a run takes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.hung_up = threading.Event(), threading.Event()

    def run_bytes(self, lengths: Sequence[int], **options: object) -> int:
        self.asked.set()
        assert self.hung_up.wait(DEADLINE_S)
        return 0


def test_a_client_that_hangs_up_as_its_text_is_taken_does_not_end_the_engine():
    """A thread that dies of a run without texts would leave all requests waiting for ever."""
    leaving, staying = HungUpUnder(), FakeModel()

    async def scenario(runs: RunExecutor) -> None:
        request = await queued(runs, leaving, text(5))
        await asyncio.to_thread(leaving.asked.wait, DEADLINE_S)
        request.cancel()
        await asyncio.wait([request])
        leaving.hung_up.set()
        assert len(await encode(runs, staying, text(5))) == 1

    run_executor(scenario)
    assert leaving.runs == []


def test_an_event_loop_that_has_closed_does_not_end_the_engine():
    """Rows for it have nowhere to go; those of other loops do."""
    model = FakeModel()
    model.released.clear()
    runs = executor_of(Telemetry("test"), limits(), room_timeout_s=0)

    async def leave_during_a_run() -> None:
        await queued(runs, model, text(1))
        await asyncio.to_thread(model.encoding.wait, DEADLINE_S)

    async def ask_again() -> list[np.ndarray]:
        return await asyncio.wait_for(encode(runs, model, text(2)), DEADLINE_S)

    runs.start(Watcher())
    try:
        asyncio.run(leave_during_a_run())
        model.released.set()
        np.testing.assert_array_equal(asyncio.run(ask_again()), [expected(text(2))])
    finally:
        runs.stop()


# --- no room --------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [NO_ROOM, PAUSED], ids=["no room", "breaker open"])
def test_a_text_that_may_not_run_is_refused_after_the_timeout(allowed: RunLimits):
    """With numbers to act on, and without a trace in the queue."""
    telemetry, model = Telemetry("test"), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        with pytest.raises(MemoryPressureError, match="a text of 7 tokens waited 0 s"):
            await encode(runs, model, text(5, 7))
        runs.set_limits(limits())
        assert len(await encode(runs, model, text(6))) == 1

    run_executor(scenario, allowed=allowed, telemetry=telemetry)
    assert model.run_sizes == [1]
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


def test_texts_that_wait_for_the_same_room_are_refused_together():
    """One after another, each with a timeout of its own, the last would wait for minutes."""
    model, clock = WatchedModel(), FakeClock()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(1, n)) for n in (3, 4, 5)]
        await model.was_asked_for(3)  # at a second that was read before
        clock.now_s += LONG_S
        runs.set_limits(STILL_NO_ROOM)
        for call in calls:
            with pytest.raises(MemoryPressureError):
                await call

    run_executor(scenario, allowed=NO_ROOM, room_timeout_s=LONG_S, clock=clock)


def test_a_text_that_came_later_has_its_own_time_to_wait():
    """It is not refused for the patience of the one before it."""
    model, clock = WatchedModel(), FakeClock()

    async def scenario(runs: RunExecutor) -> None:
        first = await queued(runs, model, text(1, 3))
        await model.was_asked_for(3)  # at a second that was read before
        clock.now_s += LONG_S - 1
        second = await queued(runs, model, text(2, 4))
        clock.now_s += 1
        runs.set_limits(STILL_NO_ROOM)
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
            await encode(runs, model, text(5))

    run_executor(scenario)


@pytest.mark.parametrize("allowed", [NO_ROOM, PAUSED], ids=["no room", "breaker open"])
def test_stopping_does_not_wait_for_room(allowed: RunLimits):
    """It may never come, and an operator who stops a server waits seconds, not minutes."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n)) for n in range(3)]
        await asyncio.to_thread(runs.stop)
        for call in calls:
            with pytest.raises(MemoryPressureError):
                await call

    run_executor(scenario, allowed=allowed, room_timeout_s=LONG_S)
    assert model.runs == []


def test_stopping_does_not_wait_for_the_pause_before_a_retry(monkeypatch: pytest.MonkeyPatch):
    """The texts are tried at once instead."""
    monkeypatch.setattr(run_policy, "FIRST_PAUSE_S", LONG_S)
    errors = [EncodeMemoryError("no memory"), None]
    model = WatchedModel(lambda texts: errors.pop(0))

    async def scenario(runs: RunExecutor) -> None:
        call = await queued(runs, model, text(5))
        await asyncio.to_thread(model.releasing.wait, DEADLINE_S)
        await asyncio.to_thread(runs.stop)
        np.testing.assert_array_equal(await call, [expected(text(5))])

    run_executor(scenario)
