"""Texts that run between the layers of a list's run."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from plimsoll.encoder.model import WeightSizes
from plimsoll.policy.lines import DROPPING_STEP
from plimsoll.policy.priority import Priority
from plimsoll.policy.runs import RunLimits
from plimsoll.serving.executor import RunExecutor
from tests.fakes import DEADLINE_S, HIDDEN, FakeModel
from tests.serving.test_executor import Watcher, expected, limits, run_executor, text

N_LAYERS = 3
LIST = [text(marker) for marker in range(4)]


class LayeredModel(FakeModel):
    """Stops between the layers of a run that lets others in, until it may go on.

    refused: texts of so many tokens cannot be computed.
    """

    sizes = WeightSizes(weights_bytes=0, layer_bytes=0, n_layers=N_LAYERS)

    def __init__(self, refused: int = 0) -> None:
        super().__init__()
        self.refused = refused
        self.lets_in: list[bool] = []  # of each run
        self.stopped = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)

    def encode(self, texts: Sequence[np.ndarray], **options: object) -> np.ndarray:
        """Pass the layers, then as the fake does."""
        between_layers = options["between_layers"]
        self.lets_in.append(between_layers is not None)
        if callable(between_layers):
            for _ in range(N_LAYERS - 1):
                self.stopped.release()
                assert self.may_go_on.acquire(timeout=DEADLINE_S)
                between_layers()
        if any(len(ids) == self.refused for ids in texts):
            raise ZeroDivisionError
        return super().encode(texts)

    async def stops(self) -> None:
        """A run is between two layers."""
        assert await asyncio.to_thread(self.stopped.acquire, timeout=DEADLINE_S)


def of_class(
    runs: RunExecutor, model: FakeModel, texts: Sequence[np.ndarray], priority: Priority
) -> "asyncio.Task[list[np.ndarray]]":
    return asyncio.create_task(runs.encode(model, texts, HIDDEN, priority=priority))


def test_a_query_is_answered_between_two_layers_of_a_list():
    """A layer is short and a list's run is not; and the query's vector is its own."""
    model, asked, watcher = LayeredModel(), text(9), Watcher()

    async def scenario(runs: RunExecutor) -> None:
        listed = of_class(runs, model, LIST, Priority.BULK)
        await model.stops()
        query = of_class(runs, model, [asked], Priority.INTERACTIVE)
        await asyncio.sleep(0)  # it stands in the inbox
        model.may_go_on.release()
        (vector,) = await query
        np.testing.assert_array_equal(vector, expected(asked))
        assert not listed.done()

        await model.stops()
        model.may_go_on.release()
        for ids, row in zip(LIST, await listed, strict=True):
            np.testing.assert_array_equal(row, expected(ids))
        await watcher.saw(1)

    run_executor(scenario, watcher=watcher)
    assert model.lets_in == [True, False]
    (ended,) = watcher.ended
    assert ended.n_texts == len(LIST) + 1
    assert ended.n_tokens == sum(map(len, LIST)) + len(asked)


def test_another_list_is_not_let_in():
    """It would make the first one wait and gain nothing."""
    model = LayeredModel()

    async def scenario(runs: RunExecutor) -> None:
        first = of_class(runs, model, LIST, Priority.BULK)
        await model.stops()
        second = of_class(runs, model, [text(9)], Priority.BULK)
        await asyncio.sleep(0)
        model.may_go_on.release(2 * N_LAYERS)
        await first
        await second

    run_executor(scenario)
    assert model.lets_in == [True, True]
    assert [len(texts) for texts in model.runs] == [len(LIST), 1]


def test_what_is_let_in_and_fails_fails_alone():
    """The list that it ran beside has nothing to do with it."""
    model = LayeredModel(refused=7)

    async def scenario(runs: RunExecutor) -> None:
        listed = of_class(runs, model, LIST, Priority.BULK)
        await model.stops()
        query = of_class(runs, model, [text(9, 7)], Priority.INTERACTIVE)
        await asyncio.sleep(0)
        model.may_go_on.release(N_LAYERS)
        with pytest.raises(ZeroDivisionError):
            await query
        assert len(await listed) == len(LIST)

    run_executor(scenario)


@pytest.mark.parametrize(
    ("priority", "allowed"),
    [
        (Priority.INTERACTIVE, limits()),
        (Priority.BULK, limits(step=DROPPING_STEP)),
        (Priority.BULK, limits(kept_bytes=1)),
    ],
    ids=["short", "pages are dropped", "some layers are kept"],
)
def test_a_run_without_gaps_is_not_broken_up(priority: Priority, allowed: RunLimits):
    """A short one passes all layers in one call; a pass over the disk should serve many texts."""
    model = LayeredModel()

    async def scenario(runs: RunExecutor) -> None:
        await of_class(runs, model, LIST, priority)

    run_executor(scenario, allowed=allowed)
    assert model.lets_in == [False]
