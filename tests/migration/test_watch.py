"""Searches after a cut-over: when they take it back, and when they do not."""

import asyncio
from pathlib import Path

import pytest

from plimsoll.corpora.records import Document
from plimsoll.errors import SpaceMismatchError
from plimsoll.migration.states import MigrationState as State
from plimsoll.migration.watch import LEAST_SEARCHES, WATCH_S, CutoverWatch, Watched
from tests.fakes import FakeClock
from tests.migration.models import NEW, OLD, inside, settings_of, texts

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


def test_a_new_version_that_answers_nothing_is_taken_back_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The model's file was replaced under it, for instance."""

    async def play() -> None:
        async with inside(settings_of(folder)) as server:
            await server.ensure("ships", model=OLD)
            given = [Document(f"d{n}", text) for n, text in enumerate(texts(60))]
            await server.put("ships", given)
            number = await server.begin("ships", NEW)
            await server.until_rest(number)
            await server.migrations.cut_over(number, "test", "")
            with monkeypatch.context() as patch:
                patch.setattr("plimsoll.corpora.search.check_space", mismatch)
                for _ in range(LEAST_SEARCHES):
                    assert (await server.search("ship", mode="auto")).mode == "bm25"
            await asyncio.gather(*server.migrations._going_back)

            status = await server.migrations.status(number)
            assert status.state is State.ROLLED_BACK
            change = status.counts.changes[-1]
            assert change.who == "server"
            assert change.why == "20 of 20 searches after cut-over had no answer"
            assert (await server.search("ship")).fingerprint == (
                status.counts.migration.source.fingerprint
            )

    def mismatch(*given: object) -> None:
        raise SpaceMismatchError("another space")

    asyncio.run(play())
