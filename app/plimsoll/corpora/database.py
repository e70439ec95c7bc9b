"""The file of collections: its connections, its one writer, and what keeps it safe.

Owns the connections. One transaction writes at a time; each reader sees the file as it was when it
began, and waits for no writer. Everything here blocks, and runs in threads; `read` and `write` see
to that. What is in the tables is the matter of the modules beside this one, which take a
connection: who holds a transaction decides what commits together.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import mkstemp
from threading import Lock
from typing import Concatenate, ParamSpec, TypeVar

from plimsoll.corpora.reading_limit import INSTRUCTIONS, ReadingLimit
from plimsoll.corpora.schema import bring_up_to_date
from plimsoll.errors import StoreError
from plimsoll.files import publish
from plimsoll.serving.threads import run_in

P = ParamSpec("P")
T = TypeVar("T")

FILE_NAME = "collections.sqlite3"
# Five vectors of 768 values fill a page; with SQLite's own 4 KiB a quarter of each is empty.
PAGE_BYTES = 16 << 10
PAGE_CACHE_KIB = 2048  # of each connection
# Statements that a connection keeps, each with the last values that it was given.
KEPT_STATEMENTS = 16
# Another process, such as one that makes a copy, holds the file for moments only.
BUSY_TIMEOUT_S = 10.0
BACKUP_PAGES = 256  # copied between two looks at signals


class Database:
    """Owns the file at `path`, which is made and brought up to date at its first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = Lock()
        self._opening = Lock()
        self._writer: sqlite3.Connection | None = None
        self._idle_readers: list[sqlite3.Connection] = []

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that commits at the block's end, and never happened where that raises.

        One at a time: not to be nested. Raises StoreError where the file refuses.
        """
        with _refusals(self.path), self._writing, _transaction(self._open()) as connection:
            yield connection

    @contextmanager
    def reading(self, limit: ReadingLimit | None = None) -> Iterator[sqlite3.Connection]:
        """The file as it is now, for the length of a block.

        Raises StoreError, and what `limit` does once it is over.
        """
        with _refusals(self.path):
            self._open()
            try:
                connection = self._idle_readers.pop()
            except IndexError:
                connection = self._connect()
            try:
                connection.execute("BEGIN")
                with _limited(connection, limit):
                    yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._idle_readers.append(connection)

    async def read(
        self,
        thread: Executor,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """What `work` makes of the file as it is now, in a thread. Raises as it and `reading` do.

        As `run_in` has it, a caller that is cancelled waits for the end.
        """

        def read() -> T:
            with self.reading() as connection:
                return work(connection, *args, **kwargs)

        return await run_in(thread, read)

    async def write(
        self,
        thread: Executor,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Likewise what it makes in a transaction that writes. Raises as it and `writing` do."""

        def write() -> T:
            with self.writing() as connection:
                return work(connection, *args, **kwargs)

        return await run_in(thread, write)

    def close(self) -> None:
        """Close every connection; no transaction may be open."""
        with self._opening:
            connections = [*self._idle_readers]
            if self._writer is not None:
                connections.append(self._writer)
            self._idle_readers, self._writer = [], None
            for connection in connections:
                connection.close()

    def _open(self) -> sqlite3.Connection:
        """The writer's connection, having made what is not there yet."""
        with self._opening:
            if self._writer is None:
                self._make_folder()
                connection = self._connect()
                try:
                    connection.execute("PRAGMA journal_mode = WAL")
                    with _transaction(connection):
                        bring_up_to_date(connection)
                except BaseException:
                    connection.close()
                    raise
                self._writer = connection
            return self._writer

    def _make_folder(self) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the folder of collections, {folder}: {error.strerror or error}; set "
                "PLIMSOLL_DATA_DIR to a folder on a disk that this user may write to"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,  # transactions begin and end as written here
            cached_statements=KEPT_STATEMENTS,
            check_same_thread=False,  # a connection is lent to one thread at a time
        )
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a file that is made now
        connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
        connection.execute("PRAGMA synchronous = FULL")  # what was answered survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself where the disk is full
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _limited(connection: sqlite3.Connection, limit: ReadingLimit | None) -> Iterator[None]:
    if limit is None:
        yield
        return
    limit.begin()
    connection.set_progress_handler(limit.is_over, INSTRUCTIONS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        raise limit.error() from error
    finally:
        connection.set_progress_handler(None, 0)


def faults_of(path: Path) -> list[str]:
    """What is wrong with the file, as SQLite finds it; reads all of it, and changes nothing.

    Raises StoreError where it cannot be read.
    """
    with _refusals(path), _read_only(path) as connection:
        try:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            found += [
                f"{table} refers to a row of {parent} that is not there"
                for table, _, parent, _ in connection.execute("PRAGMA foreign_key_check")
            ]
        except sqlite3.DatabaseError as error:  # damage that ends even the looking
            return [str(error)]
    return [fault for fault in found if fault != "ok"]


def back_up(path: Path, target: Path) -> None:
    """Write a copy of the file as it is at one moment, while servers use it. Raises StoreError.

    It has its name once it is whole.
    """
    try:
        fd, name = mkstemp(prefix=f"{target.name}.", dir=target.parent)  # for this user alone
        os.close(fd)
        written = Path(name)
        try:
            _copy(path, written)
            publish(written, target)
        except BaseException:
            written.unlink(missing_ok=True)  # it may have its name already
            raise
    except OSError as error:
        raise StoreError(f"the copy, {target}: {error.strerror or error}") from error


def _copy(path: Path, target: Path) -> None:
    with _refusals(path), _read_only(path) as source, closing(sqlite3.connect(target)) as copy:
        # In a transaction of its own; without one the copy begins anew at every commit.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        source.backup(copy, pages=BACKUP_PAGES)


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    name = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(name, uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
        yield connection


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Say which file it was, and what SQLite says of it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreError(f"the file of collections, {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a mistake of ours
            raise
        raise StoreError(
            f"the file of collections, {path}, is damaged: {error}; put a backup in its place, or "
            "take it away to begin anew"
        ) from error
