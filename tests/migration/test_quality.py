"""Whether random weights pass for a model: the verdict where a question says little or nothing."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.corpora.records import Document
from plimsoll.errors import InvalidRequestError
from plimsoll.migration import journal
from plimsoll.migration.held_memory import HeldMemory
from plimsoll.migration.pace import FULL
from plimsoll.migration.stages import TEXT_COPIES
from plimsoll.migration.states import MigrationState as State
from plimsoll.serving.gate import RequestPermit
from tests.migration.models import BAD, OLD, Inside, inside, settings_of, texts

N = 120
Verdict = Mapping[str, Any]


def ships(n: int = N) -> list[Document]:
    return [Document(f"d{number}", text) for number, text in enumerate(texts(n))]


async def foreign(server: Inside, documents: Sequence[Document]) -> None:
    """A collection of vectors that no model here made: equal texts have equal ones."""
    chance = np.random.default_rng(7)
    by_text = {each.text: chance.standard_normal(8).astype(np.float32) for each in documents}
    await server.ensure("ships", foreign_space="ada", dimensions=8)
    await server.put("ships", documents, [by_text[each.text] for each in documents], "foreign:ada")


async def verdict(server: Inside, model: str, **options: object) -> Verdict:
    """What a migration of the ships to a model comes to."""
    status = await server.until_rest(await server.begin("ships", model, **options))
    assert status.state is State.READY, status.failure
    found = status.counts.migration.verdict
    assert found is not None
    return found


def check(found: Verdict, name: str) -> Mapping[str, Any]:
    (only,) = (each for each in found["checks"] if each["name"] == name)
    return only


def test_queries_whose_documents_are_not_there_decide_nothing(folder: Path):
    """Nothing can be found for them by any model, so that none seems to lose; neighbours tell."""
    judged = [{"query": f"ship {n}", "relevant": {f"gone{n}": 1.0}} for n in range(20)]
    judged += [{"query": f"ship {n}", "relevant": {f"gone{n}": 1.0, "d7": 1.0}} for n in range(9)]

    async def scene() -> None:
        async with inside(settings_of(folder)) as server:
            await foreign(server, ships())
            found = await verdict(server, BAD, judged=judged)

        asked = check(found, "judged_queries")
        assert asked["outcome"] == "undecided"
        assert (asked["figures"]["queries"], asked["figures"]["unanswerable"]) == (9, 20)
        assert check(found, "neighbours")["outcome"] == "failed"
        assert found["decision"] == "no_go"

    asyncio.run(scene())


@pytest.mark.parametrize("n_copies", [2, 5, 11])
def test_copies_of_a_text_are_no_neighbours(folder: Path, n_copies: int):
    """They are each other's nearest under any model, which says nothing of this one."""
    copies = [Document(f"{each.id}-{n}", each.text) for each in ships(60) for n in range(n_copies)]

    async def scene() -> None:
        async with inside(settings_of(folder)) as server:
            await foreign(server, copies)
            found = await verdict(server, BAD)

        asked = check(found, "neighbours")
        assert asked["figures"]["documents"] == asked["figures"]["sampled"] == 60
        assert asked["outcome"] == "failed"
        assert found["decision"] == "no_go"

    asyncio.run(scene())


def gibberish() -> list[Document]:
    """Texts that share no words: only what a model has learned brings two of them together."""
    chance = np.random.default_rng(3)
    letters = chance.choice([*"abcdefghijklmnopqrstuvwxyz"], (N, 40, 5))
    return [
        Document(f"d{number}", " ".join("".join(word) for word in words))
        for number, words in enumerate(letters)
    ]


async def found_by(server: Inside, model: str) -> list[dict[str, Any]]:
    """Queries judged by what one model finds first."""
    await server.ensure(model, model=model)
    await server.put(model, gibberish())
    judged = []
    for document in gibberish()[::6]:
        query = document.text[:40]
        found = await server.search(query, collection=model, top_k=3)
        relevant = {each.document.id: 1.0 for each in found.results}
        judged.append({"query": query, "relevant": relevant})
    return judged


@pytest.mark.parametrize(("judge", "decision"), [(BAD, "go"), (OLD, "no_go"), (None, "no_go")])
def test_another_model_under_the_same_name_is_judged_by_its_searches(
    folder: Path, judge: str | None, decision: str
):
    """It may be a better fine-tune, or random weights: its vectors lie elsewhere either way."""

    async def scene() -> None:
        async with inside(settings_of(folder)) as server:
            judged = [] if judge is None else await found_by(server, judge)
            await server.ensure("ships", model=OLD)
            await server.put("ships", gibberish())
            found = await verdict(server, BAD, judged=judged)

        assert check(found, "same_model")["outcome"] == "noted"
        assert found["decision"] == decision

    asyncio.run(scene())


def test_a_vector_of_a_query_has_the_size_of_the_old_space(folder: Path):
    """It is refused when it is given: a migration that stops at its end would stop there again."""
    judged = [{"query": "ship", "relevant": {"d1": 1.0}, "old_vector": [1.0] * 7}]

    async def scene() -> None:
        async with inside(settings_of(folder)) as server:
            await foreign(server, ships())
            with pytest.raises(InvalidRequestError, match=r"query 0 has 7 values.* 8$") as refused:
                await server.begin("ships", BAD, judged=judged)
            assert refused.value.param == "queries"
            assert await server.migrations.statuses() == []

            await verdict(server, BAD)
            with pytest.raises(InvalidRequestError, match="query 0 has 7 values"):
                await server.migrations.validate(1, judged, "test", "")
            assert (await server.migrations.status(1)).state is State.READY

    asyncio.run(scene())


def test_one_that_failed_takes_other_queries(folder: Path):
    """Those that it has may be why it failed."""
    judged = [{"query": text, "relevant": {f"d{n}": 1.0}} for n, text in enumerate(texts(N)[:20])]

    async def scene() -> None:
        async with inside(settings_of(folder)) as server:
            await foreign(server, ships())
            number = await server.begin("ships", BAD, starts=False)
            with server.corpora.database.writing() as connection:
                for state in (State.RUNNING, State.FAILED):
                    journal.change_state(connection, number, state, "test", "")
            await server.migrations.validate(number, judged, "test", "")
            status = await server.until_rest(number)
            assert status.state is State.READY
            assert status.counts.migration.verdict is not None
            assert (
                check(status.counts.migration.verdict, "judged_queries")["figures"]["queries"] == 20
            )

    asyncio.run(scene())


def test_judged_queries_are_read_only_to_judge_by_them(folder: Path):
    """They may be megabytes of vectors, and a migration's row is read and written every batch."""
    judged = [{"query": "ship", "relevant": {"d1": 1.0}}] * 3

    async def scene() -> None:
        async with inside(settings_of(folder)) as server:
            await foreign(server, ships())
            number = await server.begin("ships", BAD, judged=judged, starts=False)
            with server.corpora.database.writing() as connection:
                assert len(journal.judged_queries(connection, number)) == 3
                connection.execute("UPDATE judged_queries SET queries = 'damaged'")
                assert journal.find(connection, number).n_judged == 3

    asyncio.run(scene())


def test_judging_holds_memory_for_the_texts_that_it_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """A batch of them at a time, however large the sampled documents are."""
    held_bytes, hold = list[int](), HeldMemory.hold
    large = [Document(each.id, each.text + " ship" * 1500) for each in ships(40)]

    async def noting(memory: HeldMemory, n_bytes: int) -> RequestPermit:
        held_bytes.append(n_bytes)
        return await hold(memory, n_bytes)

    async def scene() -> None:
        async with inside(settings_of(folder)) as server:
            await foreign(server, large)
            await verdict(server, BAD)
            monkeypatch.setattr(HeldMemory, "hold", noting)
            await server.migrations.validate(1, None, "test", "")
            await server.until_rest(1)

        _, *of_texts = held_bytes
        assert sum(of_texts) >= TEXT_COPIES * sum(len(each.text) for each in large)
        assert max(of_texts) <= TEXT_COPIES * FULL.bytes

    asyncio.run(scene())
