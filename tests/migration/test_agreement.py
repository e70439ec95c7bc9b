"""Answers after a cut-over that have too little to do with the old version's take it back."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from plimsoll.cli.migration_tables import print_migration
from plimsoll.corpora.records import Document
from plimsoll.corpora.tasks import SearchTask
from plimsoll.errors import MemoryPressureError, SpaceMismatchError
from plimsoll.migration.agreement import (
    LEAST_COMPARED,
    MOST_COMPARED,
    NOTHING_COMPARED,
    Agreement,
    beyond_chance,
    least_agreement,
)
from plimsoll.migration.as_json import migration_json
from plimsoll.migration.checks import NO_GO_OVERLAP
from plimsoll.migration.second_answers import SecondAnswers
from plimsoll.migration.states import MigrationState as State
from plimsoll.migration.status import MigrationStatus
from tests.migration.models import BAD, NEW, OLD, Inside, inside, settings_of
from tests.synthetic import TINY_SHAPE, synthetic_vocabulary

N = 300
Scene = Callable[[Inside], Awaitable[None]]


def agreement(values: list[float], least: float = 0.15) -> Agreement:
    seen = Agreement(least)
    for value in values:
        seen = seen.with_also(value)
    return seen


# --- the rule -------------------------------------------------------------------------------


def test_what_two_random_lists_share_is_nothing():
    """Of 10 among 40 they share a quarter in the mean."""
    drawn = np.random.default_rng(7)
    values = [
        beyond_chance(drawn.permutation(40)[:10].tolist(), drawn.permutation(40)[:10].tolist(), 40)
        for _ in range(2000)
    ]
    assert np.mean(values) == pytest.approx(0, abs=0.01)
    assert beyond_chance([1, 2, 3], [3, 1, 2], 40) == pytest.approx(1)


def test_where_any_two_answers_are_alike_nothing_is_said():
    assert beyond_chance([1, 2, 3], [1, 2, 3], 3) is None
    assert beyond_chance([], [], 40) is None


def test_too_low_is_below_the_limit_by_more_than_chance():
    assert not agreement([0.0] * (LEAST_COMPARED - 1)).is_too_low
    assert agreement([0.0] * LEAST_COMPARED).is_too_low
    assert not agreement([0.16] * MOST_COMPARED).is_too_low
    spread = [0.1 + 0.3 * (-1) ** n for n in range(LEAST_COMPARED)]
    assert not agreement(spread).is_too_low  # 0.1, with a standard error of 0.07
    assert agreement(spread * 10).is_too_low


def test_it_ends_after_enough_queries():
    assert not Agreement(0.0).wants_more
    assert agreement([1.0] * (MOST_COMPARED - 1)).wants_more
    assert not agreement([1.0] * MOST_COMPARED).wants_more


def verdict(decision: str, **overlaps: float) -> dict[str, Any]:
    checks = [
        {"name": name, "figures": {"overlap_at_10": overlap, "compared": LEAST_COMPARED}}
        for name, overlap in overlaps.items()
    ]
    return {"decision": decision, "checks": [{"name": "sound", "figures": {}}, *checks]}


@pytest.mark.parametrize(
    ("given", "least"),
    [
        (verdict("go", neighbours=0.6), 0.3),
        (verdict("go", neighbours=0.6, shadow=0.5), 0.25),
        (verdict("go", neighbours=0.12), 0.06),  # judged queries have said that it is better
        (verdict("go"), 0.0),
        (verdict("no_go", neighbours=0.1), NO_GO_OVERLAP),
        (verdict("no_go", neighbours=0.6), 0.3),
        (verdict("inconclusive"), NO_GO_OVERLAP),
        (None, NO_GO_OVERLAP),
    ],
)
def test_half_of_what_was_measured_has_to_be_kept(given: dict[str, Any] | None, least: float):
    """And of one that is forced as much as keeps a verdict from no-go."""
    assert least_agreement(given) == pytest.approx(least)


# --- in a server ----------------------------------------------------------------------------


def unlike_texts(n: int) -> list[str]:
    """Texts that share hardly a word: what is near what is for the weights alone to say."""
    words = [word for word in synthetic_vocabulary(TINY_SHAPE.vocab) if word.isalpha()]
    drawn = Random(3)
    return [" ".join(drawn.sample(words, 6)) for _ in range(n)]


def run(folder: Path, scene: Scene) -> None:
    """Play a scene in a server with a collection of ships."""

    async def play() -> None:
        async with inside(settings_of(folder)) as server:
            await server.ensure("ships", model=OLD)
            given = [Document(f"d{n}", text) for n, text in enumerate(unlike_texts(N))]
            await server.put("ships", given)
            await scene(server)
        assert server.core.governor.admission.held_bytes == 0

    asyncio.run(play())


async def cut_over(server: Inside, model: str) -> int:
    number = await server.begin("ships", model)
    assert (await server.until_rest(number)).state is State.READY
    await server.migrations.cut_over(number, "test", "", force=True)
    return number


async def search_on(server: Inside, number: int, n: int = MOST_COMPARED) -> MigrationStatus:
    """Ask different queries until it is taken back or so many were asked."""
    for query in unlike_texts(N + n)[N:]:
        await server.search(query, top_k=10, mode="auto")
        await server.migrations._second.finish()
        await asyncio.gather(*server.migrations._cutovers._going_back.values())
        status = await server.migrations.status(number)
        if status.state is not State.CUT_OVER:
            break
    return status


def test_random_weights_that_were_forced_in_go_back_by_themselves(folder: Path):
    """Each search has an answer, with ten documents: only the old version tells what they are."""

    async def scene(server: Inside) -> None:
        number = await cut_over(server, BAD)
        status = await search_on(server, number)
        assert (status.state, status.watch) == (State.ROLLED_BACK, None)
        change = status.counts.changes[-1]
        assert change.who == "server"
        assert "searches after cut-over agree with the old version on " in change.why
        n_compared = int(change.why.split()[0])
        assert LEAST_COMPARED <= n_compared < MOST_COMPARED

        await server.migrations.cut_over(number, "test", "we mean it", force=True)
        status = await search_on(server, number, 2 * LEAST_COMPARED)
        assert status.state is State.CUT_OVER
        assert status.watch is not None
        assert (status.watch[0].n_searches, status.watch[0].agreement) == (
            2 * LEAST_COMPARED, NOTHING_COMPARED
        )  # fmt: skip

    run(folder, scene)


def test_a_good_version_stays(folder: Path, capsys: pytest.CaptureFixture[str]):
    async def scene(server: Inside) -> None:
        number = await cut_over(server, NEW)
        status = await search_on(server, number, 2 * LEAST_COMPARED)
        assert status.state is State.CUT_OVER
        assert status.watch is not None
        seen = status.watch[0].agreement
        assert seen.n == 2 * LEAST_COMPARED
        assert seen.mean is not None
        assert seen.mean > 0.8
        told = migration_json(status)
        assert (told["watch"]["compared"], told["watch"]["agreement"]) == (seen.n, seen.mean)
        print_migration(told)
        told_words = capsys.readouterr().out
        assert f"; {seen.n} agree with the old version on {seen.mean:.0%} of what they find" in (
            told_words
        )

    run(folder, scene)


def test_a_query_counts_once_and_words_say_nothing(folder: Path):
    async def scene(server: Inside) -> None:
        number = await cut_over(server, NEW)
        for query, options in (
            ("load line", {}), ("load line", {}), ("water", {"mode": "hybrid"}),
            ("water", {"mode": "bm25"}), ("deck", {"version": 1}), ("keel", {"top_k": 20}),
        ):  # fmt: skip
            await server.search(query, **options)
            await server.migrations._second.finish()
        status = await server.migrations.status(number)
        assert status.watch is not None
        assert status.watch[0].agreement.n == 2

    run(folder, scene)


@pytest.mark.parametrize(
    ("error", "n_after"),
    [(MemoryPressureError("no room", retry_after_s=1.0), 1), (SpaceMismatchError("gone"), 0)],
)
def test_an_old_version_that_gives_no_answer_says_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, n_after: int
):
    """Where memory was short the query may come again."""

    async def fail(self: SecondAnswers, task: SearchTask, version: int) -> None:
        raise error

    async def scene(server: Inside) -> None:
        number = await cut_over(server, NEW)
        with monkeypatch.context() as patch:
            patch.setattr(SecondAnswers, "ask", fail)
            assert (await server.search("water")).results
            await server.migrations._second.finish()
        await server.search("water")
        await server.migrations._second.finish()
        status = await server.migrations.status(number)
        assert status.watch is not None
        assert status.watch[0].agreement.n == n_after

    run(folder, scene)


def test_a_restart_asks_for_as_much_as_before(folder: Path):
    async def before(server: Inside) -> None:
        status = await search_on(server, await cut_over(server, NEW), 1)
        assert status.watch is not None
        least.append(status.watch[0].agreement.least)

    async def again() -> None:
        async with inside(settings_of(folder)) as server:
            status = await server.migrations.status(1)
            assert status.watch is not None
            assert status.watch[0].agreement == Agreement(least[0])

    least = list[float]()
    run(folder, before)
    asyncio.run(again())
    assert least[0] > NO_GO_OVERLAP
