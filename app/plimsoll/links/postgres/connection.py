"""The connection to a PostgreSQL server: made when it is needed, and anew after it was lost.

Nothing that libpq says of a connection string is passed on: where a password holds a slash or an
at sign, parts of it stand where the host should. The variable that holds the string is named.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TypeAlias

import psycopg
from psycopg import errors, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError

Connection: TypeAlias = psycopg.Connection[TupleRow]

ACTIVE = TransactionStatus.ACTIVE
CONNECT_TIMEOUT_S = 10
CANCEL_TIMEOUT_S = 5.0
SILENCE_MS = 30_000  # after which a server that acknowledges nothing is given up
LOCK_TIMEOUT_MS = 3_000
STATEMENT_TIMEOUT_MS = 60_000
RETRY_S = 5.0

# What libpq says → what is passed on. Compared in lower case.
_REASONS = {
    "password authentication failed": "it refuses the user or the password",
    "no password supplied": "it asks for a password, and the connection string has none",
    "no pg_hba.conf entry": "it lets this user or this machine not in (pg_hba.conf)",
    "connection refused": "connection refused",
    "could not translate host name": "its host is not known",
    "failed to resolve host": "its host is not known",
    "timeout expired": "no connection within the time",
    "no such file or directory": "there is no socket of it",
    "does not exist": "there is no such database or user",
    "remaining connection slots": "it has no connection left",
    "too many clients": "it has no connection left",
    "starting up": "it is starting up",
    "shutting down": "it is shutting down",
    "ssl": "TLS cannot be agreed on",
}


class PostgresConnection:
    """Owns one connection, which one thread uses at a time: others wait.

    url: a secret. variable: what it is known by.
    """

    def __init__(self, url: str, variable: str) -> None:
        self._url = url
        self._name = f"the database of {variable}"
        self._connection: Connection | None = None
        self._using = RLock()

    @contextmanager
    def transaction(
        self, *, statement_timeout_ms: int = STATEMENT_TIMEOUT_MS, writes: bool = True
    ) -> Iterator[Connection]:
        """A transaction that commits at the block's end, and never happened where that raises.

        Its changes are not noted as those of others. Raises OutsideUnavailableError and
        OutsideMismatchError.
        """
        with self._using, self._told():
            connection = self._open()
            with connection.transaction():
                connection.execute(
                    """SELECT set_config('lock_timeout', %s, true),
                    set_config('statement_timeout', %s, true),
                    set_config('plimsoll.pushing', 'on', true)""",
                    (f"{LOCK_TIMEOUT_MS}ms", f"{statement_timeout_ms}ms"),
                )
                if not writes:
                    connection.execute("SET TRANSACTION READ ONLY")
                yield connection

    def alone(self, statement: sql.Composed) -> None:
        """Run a statement that may not stand in a transaction, however long it takes."""
        with self._using, self._told():
            connection = self._open()
            connection.execute("SET lock_timeout = 0")
            connection.execute("SET statement_timeout = 0")
            try:
                connection.execute(statement)
            finally:
                with suppress(psycopg.Error):  # it may be lost
                    connection.execute("RESET lock_timeout")
                    connection.execute("RESET statement_timeout")

    def interrupt(self) -> None:
        """Cancel the statement that is under way; from any thread."""
        connection = self._connection
        if connection is not None and connection.info.transaction_status is ACTIVE:
            with suppress(psycopg.Error):  # it may be lost, and then nothing is under way
                connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)

    def close(self) -> None:
        """Let go of it; the next use opens another."""
        with self._using:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                prepare_threshold=None,  # a pooler in between may change the server's session
                connect_timeout=CONNECT_TIMEOUT_S,
                tcp_user_timeout=SILENCE_MS,
                application_name="plimsoll",
            )
        return self._connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise what goes wrong as one of ours, without a secret."""
        try:
            yield
        except psycopg.Error as error:
            raised = self._as_ours(error)
            if raised is None:
                raise
            raise raised from None  # whose message may quote the connection string

    def _as_ours(self, error: psycopg.Error) -> Exception | None:
        told = error.diag.message_primary
        if isinstance(error, errors.LockNotAvailable | errors.QueryCanceled):
            return OutsideUnavailableError(
                f"{self._name}: {told}, so nothing was changed; others may hold the table",
                retry_after_s=RETRY_S,
            )
        is_lost = self._connection is None or self._connection.closed
        if is_lost and isinstance(error, psycopg.ProgrammingError):
            return OutsideMismatchError(f"{self._name}: {UNREADABLE}")
        if is_lost or isinstance(error, psycopg.OperationalError):
            self.close()
            return OutsideUnavailableError(
                f"{self._name} does not answer: {_reason_of(error)}", retry_after_s=RETRY_S
            )
        if told is None:  # a mistake of ours
            return None
        hint = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        return OutsideMismatchError(f"{self._name} refuses: {told}{hint}")


UNREADABLE = (
    "its connection string cannot be read; write postgresql://USER:PASSWORD@HOST/DATABASE, with "
    "other characters than letters and digits of the password as %40 and the like"
)


def _reason_of(error: psycopg.Error) -> str:
    if error.diag.message_primary:  # the server's own words, such as those of its shutdown
        return error.diag.message_primary
    said = str(error).lower()
    found = (reason for part, reason in _REASONS.items() if part in said)
    return next(found, "the connection was lost or cannot be made")
