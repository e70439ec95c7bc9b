"""Live searches that the new version is asked too: compared, counted, and never in the way."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from plimsoll.corpora.records import Document
from plimsoll.corpora.search import CollectionSearch
from plimsoll.corpora.tasks import SearchResults, SearchTask
from plimsoll.errors import (
    MemoryPressureError,
    MigrationStateError,
    PlimsollError,
    QueueFullError,
    SpaceMismatchError,
    StoreError,
)
from plimsoll.machine.memory import MIB
from plimsoll.migration.bridges import BridgeState
from plimsoll.migration.measures import overlap, rank_biased_overlap
from plimsoll.migration.second_answers import MOST_AT_ONCE
from plimsoll.migration.shadow import Shadow
from plimsoll.migration.states import MigrationState as State
from plimsoll.policy.costs import Demand
from plimsoll.policy.priority import Priority
from plimsoll.serving.gate import RequestPermit
from tests.migration.models import BAD, NEW, OLD, Inside, inside, settings_of, texts

N = 60
QUERIES = ("ship load line", "water", "keel mast port hull")
Scene = Callable[[Inside], Awaitable[None]]


def run(folder: Path, scene: Scene) -> None:
    """Play a scene in a server with a collection of ships."""

    async def play() -> None:
        async with inside(settings_of(folder)) as server:
            await server.ensure("ships", model=OLD)
            await server.put("ships", [Document(f"d{n}", text) for n, text in enumerate(texts(N))])
            await scene(server)
        assert server.core.governor.admission.held_bytes == 0

    asyncio.run(play())


async def compared(server: Inside, model: str = BAD, share: float = 1.0) -> int:
    """A migration with its verdict, of which so many searches are compared."""
    number = await server.begin("ships", model)
    assert (await server.until_rest(number)).state is State.READY
    await server.migrations.set_shadow(number, share, "test", "")
    return number


async def seen(server: Inside, number: int = 1) -> Shadow:
    """What was compared, once nothing is under way."""
    await server.migrations._second.finish()
    found = (await server.migrations.status(number)).counts.shadow
    assert found is not None
    return found


def rows(found: SearchResults) -> list[int]:
    return [each.document.row for each in found.results]


def with_fault(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[SearchTask], Awaitable[None]]
) -> None:
    """Have something happen to comparisons before each begins; clients have other searches."""
    by_meaning = CollectionSearch.by_meaning

    async def first(
        self: CollectionSearch, task: SearchTask, permit: RequestPermit
    ) -> SearchResults:
        await fault(task)
        return await by_meaning(self, task, permit)

    monkeypatch.setattr(CollectionSearch, "by_meaning", first)


def test_both_versions_are_compared_and_clients_get_the_old_answer(folder: Path):
    """The figures are those of both versions asked one by one."""

    async def scene(server: Inside) -> None:
        before = [await server.search(query, top_k=20) for query in QUERIES]
        await compared(server)
        overlaps, agreements = [], []
        for query, answer in zip(QUERIES, before, strict=True):
            assert await server.search(query, top_k=20) == answer
            await server.migrations._second.finish()
            new = await server.search(query, top_k=20, version=2, mode="dense")
            pair = rows(answer)[:10], rows(new)[:10]
            overlaps.append(overlap(*pair))
            agreements.append(rank_biased_overlap(*pair))

        found = await seen(server)
        assert found.n_compared == found.n_both == len(QUERIES)
        assert found.mean_overlap == pytest.approx(np.mean(overlaps))
        assert found.least_overlap == min(overlaps) < 1
        assert found.mean_agreement == pytest.approx(np.mean(agreements))
        assert (found.n_old_empty, found.n_new_empty, found.n_failed) == (0, 0, 0)
        assert found.old_s > 0
        assert found.new_s > 0

    run(folder, scene)


def test_what_was_compared_survives_a_restart_and_goes_on(folder: Path):
    async def again() -> None:
        async with inside(settings_of(folder)) as server:
            assert (await seen(server)).n_compared == 2
            await server.search("water")
            assert (await seen(server)).n_compared == 3

    async def before(server: Inside) -> None:
        await compared(server, NEW)
        for query in QUERIES[:2]:
            await server.search(query)
            await seen(server)

    run(folder, before)
    asyncio.run(again())


def test_the_verdict_tells_what_was_compared(folder: Path):
    """It decides nothing: the decision is as without it."""

    async def scene(server: Inside) -> None:
        number = await compared(server, NEW)
        before = (await server.migrations.status(number)).counts.migration.verdict
        assert before is not None
        assert "shadow" not in [check["name"] for check in before["checks"]]
        await server.search("water")
        await seen(server)
        await server.migrations.validate(number, None, "test", "")
        verdict = (await server.until_rest(number)).counts.migration.verdict
        assert verdict is not None
        (check,) = [each for each in verdict["checks"] if each["name"] == "shadow"]
        assert check["outcome"] == "noted"
        assert check["figures"]["compared"] == 1
        assert check["figures"]["overlap_at_10"] > 0.5
        assert verdict["decision"] == before["decision"] == "go"

    run(folder, scene)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpaceMismatchError("another space"), "space_mismatch"),
        (RuntimeError("a mistake of ours"), "unforeseen"),
    ],
)
def test_a_new_version_that_fails_is_counted_and_clients_see_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
):
    async def fail(task: SearchTask) -> None:
        raise error

    async def scene(server: Inside) -> None:
        before = await server.search("water")
        await compared(server)
        with_fault(monkeypatch, fail)
        assert await server.search("water") == before
        found = await seen(server)
        assert (found.n_compared, found.n_failed, found.last_failure) == (0, 1, code)

    run(folder, scene)


def test_a_new_model_that_is_not_served_any_more_fails_for_comparisons_alone(folder: Path):
    """The server is started without it: clients have what they had."""
    before = list[SearchResults]()

    async def there(server: Inside) -> None:
        await compared(server, NEW)
        before.append(await server.search("water"))
        await seen(server)

    async def gone() -> None:
        async with inside(settings_of(folder, (OLD,))) as server:
            assert await server.search("water") == before[0]
            found = await seen(server)
            assert (found.n_compared, found.n_failed) == (1, 1)
            assert found.last_failure == "space_mismatch"

    run(folder, there)
    asyncio.run(gone())


@pytest.mark.parametrize(
    "error",
    [
        MemoryPressureError("no room", retry_after_s=1.0),
        QueueFullError("a long queue", retry_after_s=1.0),
        StoreError("the disk is full"),
    ],
)
def test_a_comparison_that_finds_no_room_is_dropped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: PlimsollError
):
    """That is not the version's fault."""

    async def refuse(task: SearchTask) -> None:
        raise error

    async def scene(server: Inside) -> None:
        await compared(server)
        with_fault(monkeypatch, refuse)
        await server.search("water")
        found = await seen(server)
        assert (found.n_compared, found.n_failed) == (0, 0)

    run(folder, scene)


def test_it_waits_for_no_room(folder: Path):
    """A client would wait for seconds, and be refused then; a comparison is given up at once."""

    async def scene(server: Inside) -> None:
        await compared(server)
        task = SearchTask("ships", "water", 5, "dense")
        old = await server.search("water")
        await seen(server)
        hog = server.core.gate.permit()
        server.core.gate.measure()
        hog.keep(server.core.governor.admission.headroom_bytes(Demand(0, MIB)) - MIB)
        try:
            server.migrations._shadows.answered(task, old, 0.1)
            async with asyncio.timeout(server.core.gate.queue_timeout_s / 2):
                found = await seen(server)
        finally:
            hog.leave()
        assert (found.n_compared, found.n_failed) == (1, 0)

    run(folder, scene)


def test_none_begins_while_the_server_is_short_of_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    async def scene(server: Inside) -> None:
        await compared(server)
        monkeypatch.setattr(type(server.core.governor), "step", 1)
        await server.search("water")
        monkeypatch.undo()
        assert (await seen(server)).n_compared == 0

    run(folder, scene)


def test_searches_do_not_wait_for_comparisons_of_which_few_are_under_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each is bulk work; what comes while enough are under way is dropped."""
    asked, go_on = list[SearchTask](), asyncio.Event()

    async def hold(task: SearchTask) -> None:
        asked.append(task)
        await go_on.wait()

    async def scene(server: Inside) -> None:
        await compared(server)
        with_fault(monkeypatch, hold)
        for _ in range(MOST_AT_ONCE + 3):
            assert (await server.search("water")).results
        while len(asked) < MOST_AT_ONCE:
            await asyncio.sleep(0)
        go_on.set()
        assert (await seen(server)).n_compared == MOST_AT_ONCE == len(asked)
        assert {task.priority for task in asked} == {Priority.BULK}

    run(folder, scene)


def test_only_a_whole_version_that_searches_do_not_read_is_compared(folder: Path):
    """Not before it is whole, not after cut-over, not searches by words; again once it is back."""

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, starts=False)
        await server.migrations.set_shadow(number, 1.0, "test", "")
        await server.search("water")
        assert (await seen(server)).n_compared == 0
        await server.migrations.resume(number, "test", "")
        await server.until_rest(number)
        await server.search("water", mode="bm25")
        assert (await seen(server)).n_compared == 0
        await server.migrations.cut_over(number, "test", "")
        await server.search("water")
        assert (await seen(server)).n_compared == 0
        with pytest.raises(MigrationStateError, match="while they read the old version"):
            await server.migrations.set_shadow(number, 0.5, "test", "")
        await server.migrations.roll_back(number, "test", "")
        await server.search("water", mode="hybrid")
        assert (await seen(server)).n_compared == 1

    run(folder, scene)


def test_a_share_is_drawn_and_ends_with_0(folder: Path, monkeypatch: pytest.MonkeyPatch):
    async def scene(server: Inside) -> None:
        number = await compared(server, share=0.25)
        drawn = iter([0.24, 0.25, 0.9, 0.0])
        monkeypatch.setattr(server.migrations._shadows, "_draw", lambda: next(drawn))
        for _ in range(4):
            await server.search("water")
            await server.migrations._second.finish()
        assert (await seen(server)).n_compared == 2

        ended = await server.migrations.set_shadow(number, 0.0, "test", "seen enough")
        await server.search("water")
        found = await seen(server)
        assert (found.share, found.n_compared) == (0.0, 2)
        assert ended.counts.changes[-1].why == "no searches are compared; seen enough"

    run(folder, scene)


def test_searches_that_read_both_versions_are_not_compared(folder: Path):
    """Nor the other way round: the old answer would not be the one that clients get."""

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, starts=False, is_progressive=True)
        with pytest.raises(MigrationStateError, match="end progressive search first"):
            await server.migrations.set_shadow(number, 0.5, "test", "")
        await server.migrations.set_progressive(number, "test", "", is_on=False)
        await server.migrations.set_shadow(number, 0.5, "test", "")
        with pytest.raises(MigrationStateError, match="share of 0"):
            await server.migrations.set_progressive(number, "test", "", is_on=True)

    run(folder, scene)


def test_a_share_of_a_migration_that_has_ended_takes_no_place_after_a_restart(folder: Path):
    """The next migration of its collection has one too."""

    async def before(server: Inside) -> None:
        first = await compared(server, NEW)
        await server.migrations.cancel(first, "test", "")
        assert (await seen(server, first)).share == 0
        assert server.migrations._shadows._shares == {}
        second = await compared(server, NEW)
        await server.search("water")
        assert (await seen(server, second)).n_compared == 1

    async def again() -> None:
        async with inside(settings_of(folder)) as server:
            await server.search("water")
            assert (await seen(server, 2)).n_compared == 2

    run(folder, before)
    asyncio.run(again())


def test_searches_that_a_bridge_is_to_be_read_by_are_not_compared(folder: Path):
    """It lets them read both versions by itself, and each comparison would be dropped."""

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, starts=False, bridge="gated")
        with pytest.raises(MigrationStateError, match="as soon as its bridge is there"):
            await server.migrations.set_shadow(number, 1.0, "test", "")
        await server.migrations.resume(number, "test", "")
        done = await server.until_rest(number)  # too few documents for a bridge
        assert done.counts.bridge is not None
        assert done.counts.bridge.state is BridgeState.REFUSED
        await server.migrations.set_shadow(number, 1.0, "test", "")
        await server.search("water")
        assert (await seen(server)).n_compared == 1

    run(folder, scene)


def test_an_empty_answer_counts_as_one(folder: Path):
    async def scene(server: Inside) -> None:
        await compared(server, NEW)
        assert (await server.search("water", filter={"no": "such"})).results == []
        found = await seen(server)
        assert (found.n_compared, found.n_both) == (1, 0)
        assert (found.n_old_empty, found.n_new_empty) == (1, 1)
        assert found.mean_overlap is found.mean_agreement is None

    run(folder, scene)


def test_rank_biased_overlap_is_that_of_its_paper():
    """Equation 23 by hand: one, one and three of the first three, p = 0.9."""
    assert rank_biased_overlap([1, 2, 3], [1, 3, 2]) == pytest.approx(
        1 * 0.9**3 + 0.1 / 0.9 * (1 * 0.9 + 0.5 * 0.9**2 + 1 * 0.9**3)
    )
    assert rank_biased_overlap([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert rank_biased_overlap([1, 2], [3, 4]) == 0
    assert rank_biased_overlap([1, 2, 3, 4], [1]) == pytest.approx(1)  # as deep as both are
