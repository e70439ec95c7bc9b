"""Texts that run between the layers of a list's run."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from plimsoll.encoder.layout import PACK_TOKENS
from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.errors import EncodeMemoryError
from plimsoll.policy.lines import DROPPING_STEP
from plimsoll.policy.priority import Priority
from plimsoll.policy.runs import RunLimits
from plimsoll.serving.executor import RunExecutor
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import DEADLINE_S, HIDDEN, FakeModel, metric
from tests.serving.test_executor import Watcher, expected, limits, run_executor, text

N_LAYERS = 3
LIST = [text(marker) for marker in range(4)]


class LayeredModel(FakeModel):
    """Stops between the layers of a run that lets others in, until it may go on.

    refused: texts of so many tokens cannot be computed; error: with which.
    """

    sizes = WeightSizes(weights_bytes=0, layer_bytes=0, n_layers=N_LAYERS)

    def __init__(self, refused: int = 0, error: Exception | None = None) -> None:
        super().__init__()
        self.refused = refused
        self.refusal = error or ZeroDivisionError()
        self.lets_in: list[bool] = []  # of each run
        self.pack_tokens: list[object] = []  # of each run
        self.stopped = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)

    def encode(self, texts: Sequence[np.ndarray], **options: object) -> np.ndarray:
        """Pass the layers, then as the fake does."""
        between_layers = options["between_layers"]
        self.lets_in.append(between_layers is not None)
        self.pack_tokens.append(options["pack_tokens"])
        if callable(between_layers):
            for _ in range(N_LAYERS - 1):
                self.stopped.release()
                assert self.may_go_on.acquire(timeout=DEADLINE_S)
                between_layers()
        if any(len(ids) == self.refused for ids in texts):
            raise self.refusal
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


def test_what_is_let_in_and_finds_no_memory_waits_for_the_lists_end():
    """The list holds what it lacks, so trying again beside it would fail it for nothing."""
    model = LayeredModel(refused=7, error=EncodeMemoryError("no memory"))
    asked = text(9, 7)

    async def scenario(runs: RunExecutor) -> None:
        listed = of_class(runs, model, LIST, Priority.BULK)
        await model.stops()
        query = of_class(runs, model, [asked], Priority.INTERACTIVE)
        await asyncio.sleep(0)
        model.may_go_on.release()
        await model.stops()  # it was refused, and is not let in again
        assert not query.done()
        model.refused = 0
        model.may_go_on.release()
        await listed
        (vector,) = await query
        np.testing.assert_array_equal(vector, expected(asked))

    telemetry = Telemetry("test")
    run_executor(scenario, telemetry=telemetry)
    assert model.lets_in == [True, False, False]
    assert len(model.runs[0]) == len(LIST)  # it ran to its end between the two tries
    # A text waits once, however often it was tried.
    page = telemetry.render().decode()
    assert metric(page, 'plimsoll_stage_duration_seconds_count{stage="queue"}') == len(LIST) + 1


def test_what_is_let_in_keeps_the_limits_of_now_and_its_memory_is_told():
    """Memory may have run short since the list's run began; what nobody tells passes for rest."""
    model, watcher = LayeredModel(), Watcher()

    async def scenario(runs: RunExecutor) -> None:
        listed = of_class(runs, model, LIST, Priority.BULK)
        await model.stops()
        query = of_class(runs, model, [text(9)], Priority.INTERACTIVE)
        await asyncio.sleep(0)
        runs.set_limits(limits(parallelism=1))
        model.may_go_on.release(N_LAYERS)
        await query
        await listed
        await watcher.saw(1)

    run_executor(scenario, watcher=watcher)
    assert model.pack_tokens == [PACK_TOKENS, PACK_TOKENS // 2]
    taken = model.run_bytes([len(ids) for ids in LIST])
    assert watcher.told[:-1] == [taken, taken + model.run_bytes([3]), taken]


def test_nothing_is_let_in_while_its_weights_do_not_stay():
    """It would read them from the disk, and drop the pages that the list's run needs next."""
    model = LayeredModel()

    async def scenario(runs: RunExecutor) -> None:
        listed = of_class(runs, model, LIST, Priority.BULK)
        await model.stops()
        query = of_class(runs, model, [text(9)], Priority.INTERACTIVE)
        await asyncio.sleep(0)
        runs.set_limits(limits(step=DROPPING_STEP))
        model.may_go_on.release(N_LAYERS)
        await listed
        await query

    run_executor(scenario)
    assert [len(texts) for texts in model.runs] == [len(LIST), 1]


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
