"""The server's state: one look that changes nothing, whether it is ready, and what gauges show."""

import asyncio
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from plimsoll.errors import ModelDownloadError
from plimsoll.machine.memory import MIB
from plimsoll.models.slot import RETRY_PAUSE_S
from plimsoll.policy.breaker import BreakerState
from plimsoll.policy.costs import Demand
from plimsoll.serving.control_loop import HISTORY_S
from plimsoll.serving.core import SMALLEST_TOKENS
from plimsoll.serving.state import Unready, show
from tests.fakes import DEADLINE_S
from tests.serving.core_bench import BUDGET_BYTES, FLOOR_RATIO, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def open_model(bench: Bench) -> None:
    async with bench.models.lease():
        pass


# --- ready, or why not ----------------------------------------------------------------------


def test_a_server_with_its_model_open_is_ready(bench: Bench):
    """So that requests are sent to it."""

    async def scenario() -> None:
        await open_model(bench)
        assert bench.core.state().unready is None

    bench.run(scenario)


def test_a_server_on_its_way_out_is_not_ready(bench: Bench):
    """Before anything else: no request should come that it will not finish."""

    async def scenario() -> None:
        await open_model(bench)
        bench.core.drain.started = True
        assert bench.core.state().unready == Unready("draining", "the server is stopping")

    bench.run(scenario)


def test_a_default_model_that_would_not_open_is_named_with_its_error(bench: Bench):
    """An operator reads there what to mend; once it opens the server is ready again."""
    bench.opener.errors = [ModelDownloadError("the hub is away")]

    async def scenario() -> None:
        with pytest.raises(ModelDownloadError):
            await open_model(bench)
        state = bench.core.state()
        assert state.unready == Unready("unavailable", "fake would not open: the hub is away")
        assert (state.models[0].state, state.models[0].error) == ("failed", "the hub is away")
        bench.clock.now_s += RETRY_PAUSE_S
        await open_model(bench)
        assert bench.core.state().unready is None

    bench.run(scenario)


def test_while_the_default_model_is_made_ready_for_the_first_time_the_server_is_starting(
    bench: Bench,
):
    """There is nothing to answer from; how far it has come is seen."""
    bench.opener.released.clear()

    async def scenario() -> None:
        opening = asyncio.create_task(open_model(bench))
        await asyncio.to_thread(bench.opener.opening.wait, DEADLINE_S)
        state = bench.core.state()
        assert state.unready == Unready("starting", "fake is being made ready")
        assert state.models[0].traits is None
        bench.opener.released.set()
        await opening
        assert bench.core.state().unready is None

    bench.run(scenario)


def test_a_model_that_was_closed_for_want_of_use_keeps_the_server_ready(bench: Bench):
    """Closed, or opening for the next request, which only takes a moment longer."""

    async def scenario() -> None:
        await open_model(bench)
        await bench.models.close()
        assert bench.core.state().unready is None
        bench.opener.released.clear()
        bench.opener.opening.clear()
        opening = asyncio.create_task(open_model(bench))
        await asyncio.to_thread(bench.opener.opening.wait, DEADLINE_S)
        state = bench.core.state()
        assert (state.unready, state.models[0].state) == (None, "loading")
        bench.opener.released.set()
        await opening

    bench.run(scenario)


def budget_named(unready: Unready) -> int:
    found = re.search(r"PLIMSOLL_MEMORY_BUDGET, to (\d+)M or more", unready.message)
    assert found, unready.message
    return int(found.group(1)) * MIB


async def widen_and_rest(bench: Bench, width: int, used_ratio: float) -> None:
    """Open a model of such a width, and rest with so much of 400 MiB in use."""
    traits = bench.model.traits
    shape = replace(traits.architecture, hidden=width, ffn=width)
    bench.model.traits = replace(traits, architecture=shape)
    bench.use(used_ratio)
    await open_model(bench)
    bench.tick(3)  # until it has settled


# A text of 16 tokens takes 0.3, 51 and 406 MiB at these widths.
SMALL, LARGE, HUGE = 64, 1 << 16, 1 << 19


@pytest.mark.parametrize(
    ("width", "used_ratio"),
    [(SMALL, 0.90), (LARGE, 0.60), (LARGE, 0.88), (HUGE, 0.40), (HUGE, 0.90)],

)  # fmt: skip
def test_a_server_that_could_serve_nothing_says_at_which_budget_it_would(
    bench: Bench, width: int, used_ratio: float
):
    """It once refused every request for minutes with /health all well. The number that it names is
    tried here: with it the server is ready, with 2 MiB less it is not."""

    async def scenario() -> None:
        await widen_and_rest(bench, width, used_ratio)
        unready = bench.core.state().unready
        assert unready is not None
        assert unready.status == "no_memory"
        assert f"takes {used_ratio * BUDGET_BYTES / MIB:.0f} MiB" in unready.message
        assert f"a text of {SMALLEST_TOKENS} tokens" in unready.message
        needed_bytes = budget_named(unready)
        assert needed_bytes > BUDGET_BYTES
        for change_bytes, is_ready in ((0, True), (-2 * MIB, False), (100 * MIB, True)):
            bench.limit(needed_bytes + change_bytes)
            bench.tick()
            assert (bench.core.state().unready is None) is is_ready

    bench.run(scenario)


@pytest.mark.parametrize(("width", "used_ratio"), [(SMALL, 0.60), (SMALL, 0.88), (LARGE, 0.40)])
def test_a_tight_server_that_can_serve_something_is_ready(
    bench: Bench, width: int, used_ratio: float
):
    """Slow and small is better than taken away."""

    async def scenario() -> None:
        await widen_and_rest(bench, width, used_ratio)
        assert bench.core.state().unready is None

    bench.run(scenario)


def test_requests_under_way_make_no_server_unready(bench: Bench):
    """To be full for a moment is no reason to be taken out of service."""

    async def scenario() -> None:
        await open_model(bench)
        permit = bench.core.gate.permit()
        permit.renew_now(Demand(10, 100 * MIB))
        bench.use(0.69)
        bench.tick(3)
        assert bench.core.state().unready is None
        permit.leave()

    bench.run(scenario)


# --- one look -------------------------------------------------------------------------------


def test_a_look_measures_memory_anew_and_changes_nothing(bench: Bench):
    """A page that is open must not move the server, and /health must not tell of a second ago."""

    async def scenario() -> None:
        bench.tick()
        bench.use(0.76)
        before, n_moments = bench.core.governor.limits(), len(bench.core.control_loop.history)
        state = bench.core.state()
        assert state.memory.used_bytes == round(0.76 * BUDGET_BYTES)
        assert (state.step, state.plan.parallelism) == (0, 8)  # decided at the tick
        assert bench.core.governor.limits() == before
        assert len(state.history) == n_moments
        with pytest.raises(FrozenInstanceError):
            state.step = 3  # type: ignore[misc]
        bench.tick()
        assert (bench.core.state().step, state.step) == (2, 0)

    bench.run(scenario)


def test_the_state_says_what_is_promised_and_what_waits(bench: Bench):
    """Each number has one source, and this is where operators see it."""

    async def scenario() -> None:
        bench.tick()
        permit = bench.core.gate.permit()
        permit.renew_now(Demand(400, 30 * MIB, 20 * MIB))
        bench.fail_for_want_of_memory()
        state = bench.core.state()
        assert state.predicted_bytes == round(FLOOR_RATIO * BUDGET_BYTES) + 50 * MIB
        assert state.line_bytes == round(0.70 * BUDGET_BYTES)
        assert (state.queue_tokens, state.drain_tokens_per_s) == (400, 200)
        assert state.queue_limit_tokens == 8192
        assert state.breaker.state is BreakerState.OPEN
        assert (state.step, state.budget_source) == (4, bench.core.memory.budget.source)
        assert state.limits == bench.core.memory.limits
        assert state.bottleneck["kind"] == "none"
        assert any("breaker is open" in effect for effect in state.effects)
        assert [model.name for model in state.models] == ["fake"]

    bench.run(scenario)


def test_the_last_minutes_are_kept_and_no_more(bench: Bench):
    """The status page draws them; a server runs for months."""
    bench.use(0.40)
    bench.tick(round(HISTORY_S) + 5)
    history = bench.core.state().history

    assert len(history) == round(HISTORY_S)
    assert history[-1].at_s == bench.clock.now_s
    assert history[0].at_s == bench.clock.now_s - round(HISTORY_S) + 1
    assert history[-1].used_bytes == round(0.40 * BUDGET_BYTES)


def test_ticks_under_pressure_cut_no_minute_from_the_history(bench: Bench):
    """They come twice a second, and once halved what the status page showed of an alarm."""
    for _ in range(2 * round(HISTORY_S) + 5):
        bench.clock.now_s += 0.5
        bench.core.control_loop.tick()
    history = bench.core.state().history

    assert history[0].at_s == bench.clock.now_s - HISTORY_S + 0.5
    assert len(history) == 2 * HISTORY_S


# --- the gauges -----------------------------------------------------------------------------


def test_a_scrape_shows_the_state(bench: Bench):
    """Gauges are set then and not before: a page that is not read costs nothing."""
    group = bench.machine

    async def scenario() -> None:
        bench.tick()
        group.write_group("a", pressure="some avg10=12.50 avg60=0.00 avg300=0.00 total=0\n")
        group.write_group("a/b", stat="anon 1\nworkingset_refault_file 2000")
        group.write_file("a/b/cpu.stat", "throttled_usec 500000")
        bench.use(0.76)
        await bench.encode()
        bench.fail_for_want_of_memory()
        bench.tick()
        assert bench.series("parallelism") == 0  # nothing has looked yet
        show(bench.core.state(), bench.telemetry)

    bench.run(scenario)
    expected = {
        "throughput_tokens_per_second": 3,
        "parallelism": 1,
        "engine_threads": 1,
        "memory_used_bytes": round(0.76 * BUDGET_BYTES),
        "memory_resident_bytes": bench.core.memory.sample().resident_bytes,
        "memory_budget_bytes": BUDGET_BYTES,
        "memory_utilization_ratio": pytest.approx(0.76),
        "memory_predicted_bytes": round(0.76 * BUDGET_BYTES),
        "memory_pressure_ratio": 0.125,
        "memory_refaults_per_second": 2000,
        "memory_oom_kills": 0,
        "cpu_throttled_ratio": pytest.approx(0.5),
        "ladder_step": 4,
        'breaker_state{state="open"}': 1,
        'breaker_state{state="closed"}': 0,
        'breaker_state{state="half_open"}': 0,
    }
    assert {name: bench.series(name) for name in expected} == expected
