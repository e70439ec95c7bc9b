"""Searches after a cut-over: when they take it back, and when they do not."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.cli.migration_tables import print_migration
from plimsoll.corpora.records import Document
from plimsoll.errors import SpaceMismatchError, StoreError
from plimsoll.migration.as_json import migration_json
from plimsoll.migration.states import MigrationState as State
from plimsoll.migration.watch import LEAST_SEARCHES, WATCH_S, CutoverWatch, Watched
from tests.fakes import FakeClock
from tests.migration.models import NEW, OLD, Inside, inside, settings_of, texts

MOST_BAD = LEAST_SEARCHES // 20


def watched(n_good: int, n_bad: int, watch: CutoverWatch | None = None) -> Watched | None:
    """What so many searches after a cut-over come to, the bad ones last."""
    if watch is None:
        watch = CutoverWatch(FakeClock())
        watch.begin(1, "ships")
    seen = None
    for is_answered in [True] * n_good + [False] * n_bad:
        assert seen is None
        seen = watch.searched("ships", is_answered)
    return seen


def test_more_than_one_in_twenty_without_an_answer_takes_it_back():
    assert watched(LEAST_SEARCHES - MOST_BAD, MOST_BAD) is None
    seen = watched(LEAST_SEARCHES - MOST_BAD, MOST_BAD + 1)
    assert seen is not None
    assert (seen.number, seen.n_unanswered) == (1, MOST_BAD + 1)


def test_few_searches_decide_nothing():
    assert watched(0, LEAST_SEARCHES - 1) is None
    assert watched(0, LEAST_SEARCHES) is not None


def test_the_window_ends():
    clock = FakeClock()
    watch = CutoverWatch(clock)
    watch.begin(1, "ships")
    assert watch.of(1) == (Watched(1, clock.now_s + WATCH_S), WATCH_S)
    clock.now_s += WATCH_S
    assert watch.of(1) is None
    assert watched(0, LEAST_SEARCHES, watch) is None


def test_another_collection_and_one_that_went_back_do_not_count():
    watch = CutoverWatch(FakeClock())
    watch.begin(1, "ships")
    assert watch.searched("shoes", False) is None
    watch.end(1)
    assert watched(0, LEAST_SEARCHES, watch) is None


def test_one_that_is_not_taken_back_is_told_again_unless_it_stays():
    """The file may have been too full for the change."""
    watch = CutoverWatch(FakeClock())
    watch.begin(1, "ships")
    assert watched(0, LEAST_SEARCHES, watch) is not None
    assert watch.searched("ships", True) is None
    assert watch.searched("ships", False) is not None
    watch.stay(1, "the old one is no better")
    assert watch.searched("ships", False) is None
    seen = watch.of(1)
    assert seen is not None
    assert (seen[0].n_searches, seen[0].stays) == (LEAST_SEARCHES + 3, "the old one is no better")


async def cut_over(server: Inside, source: Mapping[str, Any], n: int = 60) -> int:
    """A collection of ships, moved from `source` to the new model."""
    await server.ensure("ships", **source)
    vectors = None
    if "foreign_space" in source:
        vectors = list(np.random.default_rng(7).standard_normal((n, 8)).astype(np.float32))
    given = [Document(f"d{place}", text) for place, text in enumerate(texts(n))]
    await server.put("ships", given, vectors, vectors and "foreign:ada")
    number = await server.begin("ships", NEW)
    await server.until_rest(number)
    await server.migrations.cut_over(number, "test", "", force=True)
    return number


async def search_in_vain(
    server: Inside, monkeypatch: pytest.MonkeyPatch, n: int = LEAST_SEARCHES
) -> None:
    """Search while the new version's model gives other vectors, as if its file was replaced."""

    def mismatch(*given: object) -> None:
        raise SpaceMismatchError("another space")

    with monkeypatch.context() as patch:
        patch.setattr("plimsoll.corpora.query_vectors.check_space", mismatch)
        for _ in range(n):
            assert (await server.search("ship", mode="auto")).mode == "bm25"
    await asyncio.gather(*server.migrations._cutovers._going_back.values())


def run(folder: Path, scene: Callable[[Inside], Awaitable[None]]) -> None:
    async def play() -> None:
        async with inside(settings_of(folder)) as server:
            await scene(server)

    asyncio.run(play())


def test_a_new_version_that_answers_nothing_is_taken_back_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    async def scene(server: Inside) -> None:
        number = await cut_over(server, {"model": OLD})
        await search_in_vain(server, monkeypatch)

        status = await server.migrations.status(number)
        assert (status.state, status.watch) == (State.ROLLED_BACK, None)
        change = status.counts.changes[-1]
        assert change.who == "server"
        assert change.why == "20 of 20 searches after cut-over had no answer"
        assert (await server.search("ship")).fingerprint == (
            status.counts.migration.source.fingerprint
        )

    run(folder, scene)


def test_a_file_that_refuses_the_rollback_is_asked_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse() -> None:
        raise StoreError("the disk is full")

    async def scene(server: Inside) -> None:
        number = await cut_over(server, {"model": OLD})
        with monkeypatch.context() as patch:
            patch.setattr(server.corpora.database, "writing", refuse)
            await search_in_vain(server, patch)
        assert (await server.migrations.status(number)).state is State.CUT_OVER
        await search_in_vain(server, monkeypatch, 1)
        assert (await server.migrations.status(number)).state is State.ROLLED_BACK

    run(folder, scene)


def test_it_is_not_taken_back_to_where_no_query_can_be_embedded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Vectors from elsewhere answer no search at all, and lack what was written since."""

    async def scene(server: Inside) -> None:
        number = await cut_over(server, {"foreign_space": "ada", "dimensions": 8})
        await search_in_vain(server, monkeypatch)

        status = await server.migrations.status(number)
        assert status.state is State.CUT_OVER
        assert status.watch is not None
        why = "what was written after cut-over is not in the old version"
        assert status.watch[0].stays == why
        print_migration(migration_json(status))
        assert f"\nnot taken back: {why}\n" in capsys.readouterr().out

    run(folder, scene)


def test_the_watch_goes_on_after_a_restart(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """For what is left of its time: a server may be restarted because of what is seen then."""

    def cut_over_before(server: Inside, number: int, seconds: float) -> None:
        with server.corpora.database.writing() as connection:
            connection.execute(
                """UPDATE migration_changes SET changed_at = datetime('now', ?)
                WHERE migration = ? AND after = 'cut_over'""",
                (f"-{seconds} seconds", number),
            )

    async def scenes() -> None:
        async with inside(settings_of(folder)) as server:
            number = await cut_over(server, {"model": OLD})
            cut_over_before(server, number, WATCH_S)
        async with inside(settings_of(folder)) as server:
            await search_in_vain(server, monkeypatch)
            late = await server.migrations.status(number)
            cut_over_before(server, number, WATCH_S / 2)
        async with inside(settings_of(folder)) as server:
            left = (await server.migrations.status(number)).watch
            await search_in_vain(server, monkeypatch)
            in_time = await server.migrations.status(number)

        assert (late.state, late.watch) == (State.CUT_OVER, None)
        assert left is not None
        assert 0 < left[1] <= WATCH_S / 2
        assert in_time.state is State.ROLLED_BACK

    asyncio.run(scenes())


def test_an_emptied_collection_is_no_fault_of_its_version(folder: Path):
    async def scene(server: Inside) -> None:
        number = await cut_over(server, {"model": OLD})
        for place in range(60):
            await server.corpora.catalog.delete_document("ships", f"d{place}")
        for _ in range(LEAST_SEARCHES):
            assert not (await server.search("ship")).results
        status = await server.migrations.status(number)
        assert status.watch is not None
        assert (status.watch[0].n_searches, status.watch[0].n_unanswered) == (LEAST_SEARCHES, 0)

    run(folder, scene)


def test_one_without_vectors_is(folder: Path):
    async def scene(server: Inside) -> None:
        number = await cut_over(server, {"model": OLD})
        with server.corpora.database.writing() as connection:
            connection.execute("DELETE FROM vectors_2")
            connection.execute("DELETE FROM segments WHERE version = 2")
        assert not (await server.search("ship")).results
        status = await server.migrations.status(number)
        assert status.watch is not None
        assert status.watch[0].n_unanswered == 1

    run(folder, scene)
