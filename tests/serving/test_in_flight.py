"""Texts that come again while they are on their way: one computation, a row for each."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from plimsoll.errors import EncodeMemoryError
from plimsoll.policy.priority import Priority
from plimsoll.serving.executor import RunExecutor
from plimsoll.serving.in_flight import InFlight
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import HIDDEN, metric
from tests.serving.test_executor import (
    LONG_S,
    PAUSED,
    WatchedModel,
    encode,
    expected,
    limits,
    queued,
    run_executor,
    text,
)


def run(
    scenario: Callable[[RunExecutor], Coroutine[Any, Any, None]], telemetry: Telemetry | None = None
) -> None:
    """With an executor in which nothing runs before `scenario` lets it."""
    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, telemetry=telemetry)


def test_the_same_text_of_several_requests_is_computed_once_and_each_gets_a_row_of_its_own():
    """A popular query may come a hundred times in a second; what one client's request does with
    its row must not reach another's."""
    telemetry, model = Telemetry("test"), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(1), text(n), text(1)) for n in (2, 3)]
        runs.set_limits(limits())
        rows = [row for call in calls for row in await call]
        wanted = [expected(text(n)) for n in (1, 2, 1, 1, 3, 1)]
        np.testing.assert_array_equal(rows, wanted)
        for n, row in enumerate(rows):
            row.fill(n)
        assert [row[0] for row in rows] == list(range(6))

    run(scenario, telemetry)
    assert sorted(ids[0] for texts in model.runs for ids in texts) == [101, 102, 103]
    page = telemetry.render().decode()
    found = {
        source: metric(page, f'plimsoll_vectors_total{{source="{source}"}}')
        for source in ("engine", "in_flight", "cache")
    }
    assert found == {"engine": 3, "in_flight": 3, "cache": 0}


def test_texts_that_differ_in_anything_are_not_shared():
    """Other dimensions are another vector, another model another space; and a query does not wait
    in the turn of a list that has the same words."""
    model, other = WatchedModel(), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        asked = [
            (model, HIDDEN, Priority.INTERACTIVE),
            (model, HIDDEN - 1, Priority.INTERACTIVE),
            (model, HIDDEN, Priority.BULK),
            (other, HIDDEN, Priority.INTERACTIVE),
        ]
        calls = [
            asyncio.create_task(
                runs.encode(one, [text(1)], dimensions, lambda n_tokens: None, priority)
            )
            for one, dimensions, priority in asked
        ]
        await asyncio.sleep(0)
        runs.set_limits(limits())
        for call, (_, dimensions, _) in zip(calls, asked, strict=True):
            np.testing.assert_array_equal(await call, [expected(text(1), dimensions)])

    run(scenario)
    assert [sum(map(len, one.runs)) for one in (model, other)] == [3, 1]


@pytest.mark.parametrize("leaving", [0, 1])
def test_a_client_that_hangs_up_takes_no_row_from_the_others(leaving: int):
    """Whether it came first, and so had the text computed, or later."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(1)) for _ in range(3)]
        calls[leaving].cancel()
        await asyncio.wait([calls[leaving]])
        runs.set_limits(limits())
        for call in calls[:leaving] + calls[leaving + 1 :]:
            np.testing.assert_array_equal(await call, [expected(text(1))])

    run(scenario)
    assert model.run_sizes == [1]


def test_a_text_is_dropped_when_all_who_wait_for_it_have_gone_and_may_come_again():
    """The engine's time belongs to those who still wait."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(1)) for _ in range(2)]
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        again = await queued(runs, model, text(1))
        runs.set_limits(limits())
        np.testing.assert_array_equal(await again, [expected(text(1))])

    run(scenario)
    assert model.run_sizes == [1]


def test_what_fails_fails_for_all_who_wait_and_is_tried_anew_for_the_next():
    """It is the same text, and memory may have come since."""
    errors: list[Exception | None] = [EncodeMemoryError("no memory")] * 4 + [None]
    model = WatchedModel(lambda texts: errors.pop(0))

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(1)) for _ in range(2)]
        runs.set_limits(limits())
        for call in calls:
            with pytest.raises(EncodeMemoryError):
                await call
        np.testing.assert_array_equal(await encode(runs, model, text(1)), [expected(text(1))])

    run(scenario)


def test_nothing_is_kept_of_a_text_that_has_its_row():
    """Otherwise every text that ever ran would stay in memory."""

    async def scenario() -> None:
        in_flight, loop = InFlight(), asyncio.get_running_loop()
        rows: list[asyncio.Future[np.ndarray]] = []
        for n, end in enumerate(("set_result", "set_exception", "cancel")):
            waiter = loop.create_future()
            assert not in_flight.wait_for(n, waiter, rows.append)
            what = {"set_result": [np.ones(1)], "set_exception": [ValueError()], "cancel": []}[end]
            getattr(rows[n], end)(*what)
            await asyncio.wait([waiter])
            waiter.cancelled() or waiter.exception()
            assert not in_flight.wait_for(n, loop.create_future(), lambda row: None)
        assert len(rows) == 3

    asyncio.run(scenario())
