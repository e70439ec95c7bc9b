"""Whether what a run needs is there and works: libraries, the new model, the store and its disk."""

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field

from plimsoll.corpora.database import Database
from plimsoll.corpora.words import search_words
from plimsoll.errors import HookError, PlimsollError, StoreError
from plimsoll.migration.hooks.occasion import Occasion
from plimsoll.migration.hooks.records import Answer
from plimsoll.migration.hooks.written import Options
from plimsoll.migration.records import Migration
from plimsoll.migration.survey import PROBE, version_bytes
from plimsoll.migration.validation import MigrationJudge

DISTRIBUTION = "plimsoll"
# What each feature cannot do without, of what Plimsoll asks for when it is installed.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "ml": ("gguf", "numpy", "onnxruntime", "tokenizers"),
    "vectordb": ("numpy",),
}

STAND_INS = {"onnxruntime": "onnxruntime-gpu"}  # the same module


def _split(given: object) -> object:
    return tuple(word for word in given.split(",") if word) if isinstance(given, str) else given


def _known(features: tuple[str, ...]) -> tuple[str, ...]:
    for feature in features:
        if feature not in LIBRARIES:
            raise ValueError(f"{feature!r} is no feature; there are {', '.join(LIBRARIES)}")
    return features


class ValidateDependencies(Options):
    """features: what to look at, separated by commas."""

    features: Annotated[
        tuple[str, ...], BeforeValidator(_split), AfterValidator(_known), Field(min_length=1)
    ] = ("ml", "vectordb")


class DependencyValidation:
    """Looks at each feature; the first that is wanting stops the run.

    ml: the libraries in the versions that are asked for, and the new model opens and embeds.
    vectordb: SQLite has FTS5, the file of collections opens, its disk has room for the new version.
    thread: reads the file.
    """

    def __init__(
        self,
        judge: MigrationJudge,
        database: Database,
        thread: Executor,
        options: ValidateDependencies,
    ) -> None:
        self._judge = judge
        self._database = database
        self._thread = thread
        self._features = options.features

    async def __call__(self, occasion: Occasion) -> Answer:
        """Look once."""
        if occasion.status is None:  # which Hook.needs_migration keeps from happening
            raise HookError("it looks at a migration")
        migration = occasion.status.counts.migration
        looks: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "ml": partial(self._embed_once, migration),
            "vectordb": partial(self._look_at_store, migration, occasion.status.counts.n_left),
        }
        figures: dict[str, Any] = {}
        for feature in self._features:
            wanting, found = await asyncio.to_thread(_libraries, LIBRARIES[feature])
            figures |= found
            if wanting:
                return Answer(True, f"{feature}: {'; '.join(wanting)}", figures)
            try:
                figures |= await looks[feature]()
            except (PlimsollError, sqlite3.Error) as error:
                return Answer(True, f"{feature}: {error}", figures)
        return Answer(reason=f"{', '.join(self._features)} work", figures=figures)

    async def _embed_once(self, migration: Migration) -> dict[str, Any]:
        """One short text through the new model, which opens for that. Raises PlimsollError."""
        embedder = self._judge.embedder(migration, migration.target)
        answer = await embedder.embed([PROBE], "search_query")
        (vector,) = answer.vectors
        if vector is None or not np.isfinite(vector).all():
            raise HookError(f"{migration.target.model!r} gives no vector of a plain sentence")
        return {"model": migration.target.model, "dimensions": len(vector)}

    async def _look_at_store(self, migration: Migration, n_left: int) -> dict[str, Any]:
        """Raises StoreError, sqlite3.Error."""
        needed_bytes = version_bytes(n_left, migration.target.dimensions)
        free_bytes = await self._database.read(
            self._thread, self._free_bytes, migration.collection_id
        )
        figures = {
            "sqlite": sqlite3.sqlite_version,
            "needed_bytes": needed_bytes,
            "free_bytes": free_bytes,
        }
        if needed_bytes > free_bytes:
            raise StoreError(
                f"{n_left} vectors take about {needed_bytes >> 20} MiB, and "
                f"{self._database.path.parent} has {free_bytes >> 20} MiB free"
            )
        return figures

    def _free_bytes(self, connection: sqlite3.Connection, collection: int) -> int:
        search_words(connection, collection, PROBE, 1)  # FTS5 answers
        return shutil.disk_usage(self._database.path.parent).free


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libraries(names: tuple[str, ...]) -> tuple[list[str], dict[str, Any]]:
    """What is wanting of these libraries, and the versions that are there. Reads files."""
    from packaging.requirements import Requirement  # a server that asks no such hook waits for none

    wanting, found = list[str](), dict[str, Any]()
    asked = {}
    for line in requires(DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            asked[requirement.name] = requirement.specifier
    for name in names:
        installed = _version(name) or _version(STAND_INS.get(name, name))
        if installed is None:
            wanting.append(f"{name} is not installed")
            continue
        found[name] = installed
        if name in asked and not asked[name].contains(found[name], prereleases=True):
            wanting.append(f"{name} {found[name]} is installed, and {asked[name]} is needed")
    return wanting, found
