"""What doctor and plan say of a collection, which they only look at."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from plimsoll.corpora.records import Document
from plimsoll.migration.survey import DoctorReport, MigrationPlan
from plimsoll.serving.tasks import EmbedTask
from tests.migration.models import NEW, OLD, Inside, inside, settings_of, texts

N = 40
DOCUMENTS = [Document(f"d{number}", text) for number, text in enumerate(texts(N))]


def run(folder: Path, scene: Callable[[Inside], Awaitable[None]]) -> None:
    async def play() -> None:
        async with inside(settings_of(folder)) as server:
            await scene(server)

    asyncio.run(play())


async def doctor(server: Inside) -> DoctorReport:
    permit = server.core.gate.permit()
    try:
        return await server.survey.doctor("ships", permit)
    finally:
        permit.leave()


async def plan(server: Inside, model: str) -> MigrationPlan:
    permit = server.core.gate.permit()
    try:
        return await server.survey.plan("ships", model, None, permit)
    finally:
        permit.leave()


async def vectors_of(server: Inside, model: str) -> list[np.ndarray]:
    permit = server.core.gate.permit()
    try:
        task = EmbedTask([each.text for each in DOCUMENTS], "search_document", model=model)
        found = (await server.core.service.embed_dense(task, permit)).vectors
        return [vector for vector in found if vector is not None]
    finally:
        permit.leave()


def test_vectors_of_a_served_model_are_what_it_gives(folder: Path):
    async def scene(server: Inside) -> None:
        await server.ensure("ships", model=OLD)
        await server.put("ships", [*DOCUMENTS, Document("again", DOCUMENTS[0].text)])
        report = await doctor(server)
        (version,) = report.versions

        assert (report.n_documents, report.n_repeated_texts) == (N + 1, 1)
        assert (version.health.n_vectors, version.health.n_repeated) == (N + 1, 1)
        assert version.n_equal == version.n_again == N + 1
        assert (report.blocking, report.warnings) == ([], [])

        number = await server.begin("ships", NEW)
        await server.until_rest(number)
        assert (await doctor(server)).blocking == [f"migration {number} is ready"]

    run(folder, scene)


def test_vectors_of_two_models_in_one_version_are_told_apart(folder: Path):
    """They were sent along, and claimed to be of the space."""

    async def scene(server: Inside) -> None:
        await server.ensure("ships", model=OLD)
        own, others = await vectors_of(server, OLD), await vectors_of(server, NEW)
        space = (await server.corpora.catalog.state("ships")).collection.active.space
        mixed = [*own[: N // 2], *others[N // 2 :]]
        await server.put("ships", DOCUMENTS, mixed, space.fingerprint)
        report = await doctor(server)

        assert report.versions[0].n_equal == N // 2
        (warning,) = report.warnings
        assert warning.startswith(f"mixed: {N // 2} of {N} sampled vectors are not what 'old'")

    run(folder, scene)


def test_foreign_vectors_are_recognised_where_a_model_here_gives_them(folder: Path):
    """And where none does, that is what doctor says."""

    async def scene(server: Inside) -> None:
        given = await vectors_of(server, NEW)
        await server.ensure("ships", foreign_space="brought", dimensions=len(given[0]))
        await server.put("ships", DOCUMENTS, given, "foreign:brought")
        report = await doctor(server)
        assert report.versions[0].looks_like == NEW
        assert report.warnings == ["the vectors of foreign:brought look like those of 'new'"]

        made_up = np.random.default_rng(7).standard_normal((N, len(given[0])), np.float32)
        made_up[0] = 0
        changed = [Document(each.id, each.text + " now") for each in DOCUMENTS]
        await server.put("ships", changed, list(made_up), "foreign:brought")
        zero, length, unknown = (await doctor(server)).warnings
        assert zero == "1 vectors are zero"
        assert length == f"{N} vectors are not of length 1"
        assert unknown.startswith("no model here gives vectors of foreign:brought")

    run(folder, scene)


def test_a_plan_counts_tokens_as_they_are(folder: Path):
    """All of them were counted here, so the estimate has no error."""

    async def scene(server: Inside) -> None:
        await server.ensure("ships", model=OLD)
        empty = await plan(server, NEW)
        assert (empty.n_documents, empty.n_tokens, empty.seconds) == (0, 0, 0)
        stored = await server.put("ships", DOCUMENTS)
        planned = await plan(server, NEW)

        assert (planned.n_tokens, planned.tokens_error) == (stored.n_tokens, 0)
        assert (planned.n_documents, planned.n_counted) == (N, N)
        assert planned.seconds == planned.n_tokens / planned.tokens_per_s
        assert planned.warnings == []
        (nothing,) = (await plan(server, OLD)).warnings
        assert "there is nothing to do" in nothing

    run(folder, scene)
