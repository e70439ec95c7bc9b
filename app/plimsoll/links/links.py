"""The use cases of links: listed, looked at, pulled, pushed, given up, and lent to a migration."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from sqlite3 import Connection
from typing import TypeVar

from plimsoll.corpora import documents, versions
from plimsoll.corpora.catalog import CollectionCatalog
from plimsoll.corpora.database import Database
from plimsoll.corpora.records import Collection, Space
from plimsoll.errors import (
    LinkStateError,
    OutsideError,
    StoreError,
    UnknownCollectionError,
    UnknownLinkError,
)
from plimsoll.links import state, steps
from plimsoll.links.held import HeldLink, hold
from plimsoll.links.outside import Outside
from plimsoll.links.records import Survey
from plimsoll.links.state import LinkState
from plimsoll.links.work import LinkWork
from plimsoll.nearest import did_you_mean
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.threads import run_in

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Home:
    """An outside home as the operator wrote it down. space: a foreign one's name, else None.

    follows: also where no migration is open. work: what is done for it. thread: in which.
    """

    kind: str
    outside: Outside
    model: str | None
    space: str | None
    dimensions: int | None
    follows: bool
    work: LinkWork
    thread: ThreadPoolExecutor


@dataclass(frozen=True)
class LinkStatus:
    """A link as it is now. state: None before it was pulled. waits: why nothing is done now.

    n_waiting: vectors to bring out, by the fingerprint of their space.
    """

    name: str
    kind: str
    state: LinkState | None
    n_documents: int
    n_waiting: Mapping[str, int]
    waits: str | None


class Links:
    """Owns the work of every link. thread: looks at homes and at the file. Ends with `close`."""

    def __init__(
        self,
        homes: Mapping[str, Home],
        database: Database,
        catalog: CollectionCatalog,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._homes = homes
        self._database = database
        self._catalog = catalog
        self._thread = thread

    async def start(self) -> None:
        """Go on with what was followed when the server stopped."""
        if not self._database.path.exists():
            return
        try:
            followed = [name for name in self._homes if await self._read(_goes_on, name)]
            linked = await self._database.read(self._thread, _all_linked)
        except StoreError as error:  # collections are refused with it; all else is served
            log.error("%s", error)
            return
        for name in followed:
            self._homes[name].work.start()
        for name in sorted(linked - self._homes.keys()):
            log.warning(
                "%r is linked, and PLIMSOLL_LINKS has no [links.%s] any more: changes may pile up "
                "where it leads to. Write it there again, or unlink it before",
                name, name,
            )  # fmt: skip

    async def close(self) -> None:
        """Stop working, and end the threads; a server that starts again goes on."""
        for home in self._homes.values():
            await home.work.stop()
            await run_in(home.thread, home.outside.close)
            home.thread.shutdown()
        self._thread.shutdown()

    async def statuses(self) -> list[LinkStatus]:
        """Every link, by name."""
        return [await self.status(name) for name in sorted(self._homes)]

    async def status(self, name: str) -> LinkStatus:
        """One of them. Raises UnknownLinkError."""
        home = self._home(name)
        if not self._database.path.exists():
            return LinkStatus(name, home.kind, None, 0, {}, None)
        now, n_documents, n_waiting = await self._read(_status, name)
        return LinkStatus(name, home.kind, now, n_documents, n_waiting, home.work.waits)

    async def survey(self, name: str) -> Survey:
        """Look at what is outside; changes nothing. Raises UnknownLinkError and OutsideErrors."""
        home = self._home(name)
        return (await run_in(self._thread, home.outside.survey)).expecting(home.dimensions)

    async def pull(self, name: str, permit: RequestPermit) -> LinkStatus:
        """Have a collection of the link's name, follow the link, and read every row once.

        Reading goes on behind the answer. Raises UnknownLinkError, LinkStateError where a
        collection of this name is another's, OutsideErrors, and as CollectionCatalog.ensure does.
        """
        home = self._home(name)
        before = await self._find(name)
        is_first = not _is_linked(before)
        if is_first:
            if before is not None:
                await self._check_empty(name)
            await self._catalog.ensure(
                name,
                permit,
                model=home.model,
                dimensions=home.dimensions,
                foreign_space=home.space,
            )
        collection = (await self._catalog.state(name)).collection
        async with home.work.lock:
            try:
                await home.work.run(home.outside.follow, collection.active.space, is_first=is_first)
            except OutsideError:
                if before is None:  # or it would keep the size of a mistake in the file of links
                    await self._catalog.drop(name)
                raise
            await home.work.write(steps.begin_pull)
        home.work.start()
        return await self.status(name)

    async def push(self, name: str) -> LinkStatus:
        """Bring every vector out once more, behind the answer.

        Raises UnknownLinkError and LinkStateError.
        """
        home = self._home(name)
        await self._check_linked(name)
        await home.work.write(steps.put_all)
        home.work.prepare_anew()
        home.work.start()
        return await self.status(name)

    async def unlink(self, name: str, *, force: bool = False) -> None:
        """Remove what notes changes outside, and let the collection be one of its own.

        force: also where the outside does not answer, or the operator has the link no more; what is
        there then stays. Raises UnknownLinkError, LinkStateError and OutsideErrors.
        """
        if not force:
            self._home(name)
        await self._check_linked(name)
        home = self._homes.get(name)
        if home is None:
            await self._write(steps.end_following, name)
            await self._write(steps.forget, name)
            return
        async with home.work.lock:
            await home.work.write(steps.end_following)
            try:
                await home.work.finish()
            except OutsideError:
                if not force:
                    home.work.start()
                    raise
            await home.work.write(steps.forget)
        await home.work.stop()

    @asynccontextmanager
    async def held(self, collection: str) -> AsyncIterator[HeldLink | None]:
        """The link of a collection, which nothing else changes for the block; None without one.

        Raises LinkStateError where the operator has it no more, and OutsideUnavailableError where
        it is worked on for long: it may wait for memory, or for a model.
        """
        if not _is_linked(await self._find(collection)):
            yield None
            return
        home = self._homes.get(collection)
        if home is None:
            raise LinkStateError(
                f"{collection!r} is linked, and PLIMSOLL_LINKS has no [links.{collection}] any "
                "more: write it there again",
                param="collection",
            )
        async with hold(home.work) as link:
            yield link

    @asynccontextmanager
    async def caught_up(self, collection: str) -> AsyncIterator[None]:
        """For the block nothing waits to be taken in or brought out of what searches read.

        So that following may end: what waits then is lost. Does nothing where it goes on, or where
        nothing is followed. Raises OutsideErrors and StoreError.
        """
        home = self._homes.get(collection)
        space = await self._read(_space_that_is_followed, collection)
        if home is None or home.follows or space is None:
            yield
            return
        async with hold(home.work) as link:
            link.be_quick()
            await link.catch_up(space)
            yield

    def end_following(self, connection: Connection, collection: str) -> None:
        """A migration ends in the transaction that is open: follow no more, unless asked to.

        Raises UnknownCollectionError.
        """
        home = self._homes.get(collection)
        if home is None or not home.follows:
            state.end_following(connection, versions.find(connection, collection).id)

    def wake(self, collection: str) -> None:
        """A version of a collection came or went: see to it soon, if it is linked."""
        home = self._homes.get(collection)
        if home is not None:
            home.work.wake()

    def _home(self, name: str) -> Home:
        home = self._homes.get(name)
        if home is None:
            known = did_you_mean(name, sorted(self._homes)) if self._homes else "there are none"
            raise UnknownLinkError(
                f"there is no link {name!r} in the file of PLIMSOLL_LINKS, which is read when the "
                f"server starts; {known}",
                param="name",
            )
        return home

    async def _find(self, name: str) -> Collection | None:
        return await self._read(_find, name) if self._database.path.exists() else None

    async def _check_linked(self, name: str) -> None:
        if not _is_linked(await self._find(name)):
            raise LinkStateError(
                f"{name!r} has not been pulled: `plimsoll links pull {name}` begins", param="name"
            )

    async def _check_empty(self, name: str) -> None:
        """Raise where a pull would delete documents that came from elsewhere."""
        if (await self._catalog.state(name)).n_documents:
            raise LinkStateError(
                f"the collection {name!r} has documents of its own, which a pull would replace: "
                "give the link another name, or delete the collection",
                param="name",
            )

    async def _write(self, work: Callable[[Connection, str], None], name: str) -> None:
        await self._database.write(self._thread, work, name)

    async def _read(self, work: Callable[[Connection, str], T], name: str) -> T:
        return await self._database.read(self._thread, work, name)


def _find(connection: Connection, name: str) -> Collection | None:
    try:
        return versions.find(connection, name)
    except UnknownCollectionError:
        return None


def _is_linked(found: Collection | None) -> bool:
    return found is not None and found.is_linked


def _all_linked(connection: Connection) -> set[str]:
    return {each.name for each in versions.all_collections(connection) if each.is_linked}


def _goes_on(connection: Connection, name: str) -> bool:
    return _is_linked(_find(connection, name)) and not steps.is_at_rest(connection, name)


def _space_that_is_followed(connection: Connection, name: str) -> Space | None:
    """What searches read of a collection whose changes are noted outside."""
    found = _find(connection, name)
    if found is None or not found.is_linked or not steps.linked(connection, name)[1].follows:
        return None
    return found.active.space


def _status(connection: Connection, name: str) -> tuple[LinkState | None, int, Mapping[str, int]]:
    if not _is_linked(_find(connection, name)):
        return None, 0, {}
    collection, now = steps.linked(connection, name)
    n_waiting = {
        version.space.fingerprint: state.count_waiting(connection, version.id)
        for version in steps.versions_of(connection, name)
    }
    return now, documents.count(connection, collection.id), n_waiting
