"""The inside of a server with two small models, and documents for it."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.composition.corpora import build_corpora
from plimsoll.composition.links import build_links
from plimsoll.composition.migrations import build_migrations
from plimsoll.composition.models import make_models
from plimsoll.composition.serving import make_core
from plimsoll.corpora.corpora import Corpora
from plimsoll.corpora.records import Document
from plimsoll.corpora.tasks import IngestResult, NewDocument, SearchResults, SearchTask
from plimsoll.links.links import Links
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.migration.migrations import Migrations
from plimsoll.migration.states import UNDER_WAY
from plimsoll.migration.status import MigrationStatus
from plimsoll.migration.survey import CollectionSurvey
from plimsoll.models.pool import ModelPool
from plimsoll.serving.control_loop import Monitors
from plimsoll.serving.core import ServingCore
from plimsoll.settings import Settings
from plimsoll.sidecar.load_times import LoadTimes
from plimsoll.telemetry.metrics import Telemetry

NAMES = OLD, NEW, BAD = "old", "new", "bad"
CHECK_S = 0.01
REST_DEADLINE_S = 300.0
TEST_HOSTS = "testserver"


def settings_of(folder: Path, names: Sequence[str] = NAMES) -> Settings:
    """A server that serves these models, with cache and collections below `folder`.

    Its hooks are those of `folder`/hooks.toml, where that is there.
    """
    hooks = folder / "hooks.toml"
    return Settings(
        model=str(folder / f"{names[0]}.gguf"),
        extra_models=",".join(str(folder / f"{name}.gguf") for name in names[1:]) or None,
        max_open_models=3,
        allowed_hosts=TEST_HOSTS,
        cache_dir=folder / "cache",
        data_dir=folder / "data",
        hooks=hooks if hooks.exists() else None,
        cache_on_tmpfs=True,
        idle_unload_s=0,
    )


def texts(n: int) -> list[str]:
    """Different texts of different lengths."""
    words = ("ship", "load", "line", "sea", "water", "deck", "keel", "mast", "port", "hull")
    return [
        " ".join(words[(number // 10**place + place) % 10] for place in range(3 + number % 30))
        + f" {number}"
        for number in range(n)
    ]


@dataclass(frozen=True)
class Inside:
    """A server without its web application."""

    core: ServingCore
    corpora: Corpora
    links: Links
    migrations: Migrations
    survey: CollectionSurvey
    telemetry: Telemetry

    async def put(
        self,
        collection: str,
        documents: Iterable[Document],
        vectors: Sequence[np.ndarray] | None = None,
        space: str | None = None,
    ) -> IngestResult:
        """Store documents, as a client's request does; vectors: that come along, of `space`."""

        async def lines() -> AsyncIterator[NewDocument]:
            for number, document in enumerate(documents):
                vector = None if vectors is None else vectors[number]
                yield NewDocument(number, document, vector)

        return await self.corpora.ingest.put(collection, lines(), space)

    async def ensure(self, collection: str, **options: Any) -> None:
        """Have a collection."""
        permit = self.core.gate.permit()
        try:
            await self.corpora.catalog.ensure(collection, permit, **options)
        finally:
            permit.leave()

    async def search(self, query: str, collection: str = "ships", **options: Any) -> SearchResults:
        """Search a collection."""
        permit = self.core.gate.permit()
        try:
            task = SearchTask(collection, query, **{"top_k": 5, "mode": "dense", **options})
            return await self.corpora.search.search(task, permit)
        finally:
            permit.leave()

    async def begin(self, collection: str, model: str, **options: Any) -> int:
        """Begin a migration; returns its number."""
        permit = self.core.gate.permit()
        try:
            begun = await self.migrations.begin(collection, model, permit, "test", "", **options)
        finally:
            permit.leave()
        return begun.counts.migration.id

    async def until_rest(self, number: int) -> MigrationStatus:
        """Wait until nothing is under way; returns what it came to.

        Raises TimeoutError where something is for as long as no test lasts.
        """
        async with asyncio.timeout(REST_DEADLINE_S):
            status = await self.migrations.status(number)
            while status.state in UNDER_WAY and status.failure is None:
                await asyncio.sleep(CHECK_S)
                status = await self.migrations.status(number)
        return status


@asynccontextmanager
async def inside(settings: Settings) -> AsyncIterator[Inside]:
    """Start a server's inside as its lifespan does, and stop it."""
    telemetry, monitor = Telemetry("test"), MemoryMonitor(settings.memory_budget)
    times = LoadTimes(telemetry.weights.tensor_loaded)
    models = ModelPool(
        make_models(settings, monitor, telemetry.models, times),
        max_open=settings.max_open_models,
        load_wait_s=None,
    )
    core = make_core(settings, models, Monitors(monitor, loads=times), telemetry)
    corpora = build_corpora(settings.data_dir, core, telemetry)
    links = build_links(settings.links, corpora, core, telemetry, os.environ)
    migrations, survey = build_migrations(corpora, links, core, telemetry, settings.hooks)
    try:
        async with core.running():
            corpora.reclaim.start()
            await migrations.start()
            await links.start()
            try:
                yield Inside(core, corpora, links, migrations, survey, telemetry)
            finally:
                await migrations.close()
                await links.close()
                await asyncio.to_thread(corpora.close)
    finally:
        await models.close()
