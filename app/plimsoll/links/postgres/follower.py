"""Which server follows a table: a row that it renews, in a small table beside the notes of changes.

Two servers would take each other's notes of changes away, and drop each other's columns. The one
that follows renews its row in every transaction that writes, and while it does other things for
long; another that finds the row old enough takes its place. No lock of a session is used: a pooler
in between may give sessions to others. Functions over a connection that is in a transaction.
"""

from collections.abc import Collection
from dataclasses import dataclass

from psycopg import sql

from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.postgres.catalog import Place, Table
from plimsoll.links.postgres.columns import check_alone
from plimsoll.links.postgres.connection import Connection
from plimsoll.links.server import ServerIdentity

LEASE_S = 30.0
"""After which a server that has not renewed its row is taken for dead."""

_PREFIX = "plimsoll_server_"


@dataclass(frozen=True)
class Follower:
    """The server that follows a table. id, process: as ServerIdentity has them.

    seen_s: seconds since it renewed its row.
    """

    id: str
    process: str
    words: str
    seen_s: float

    @property
    def is_alive(self) -> bool:
        """Whether it is to be waited for."""
        return self.seen_s < LEASE_S


def install(connection: Connection, place: Place) -> None:
    """Have a place for the row. May be repeated."""
    connection.execute(
        sql.SQL(
            """CREATE TABLE IF NOT EXISTS {server} (
                only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
                id text NOT NULL, process text NOT NULL, words text NOT NULL,
                seen_at timestamptz NOT NULL)"""
        ).format(**_names(place))
    )


def remove(connection: Connection, place: Place) -> None:
    """Have none any more. May be repeated."""
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {server}").format(**_names(place)))


def is_installed(connection: Connection, place: Place) -> bool:
    """Whether there is a place for the row."""
    (is_there,) = connection.execute(
        "SELECT to_regclass(%s) IS NOT NULL", (_names(place)["server"].as_string(connection),)
    ).fetchone() or (False,)
    return bool(is_there)


def find(connection: Connection, place: Place, *, locks: bool = False) -> Follower | None:
    """The server that follows, or did so last; None where there was none.

    locks: no other takes its place until the transaction ends.
    """
    if not is_installed(connection, place):
        return None
    found = connection.execute(
        sql.SQL(
            """SELECT id, process, words,
            extract(epoch FROM clock_timestamp() - seen_at)::double precision FROM {server} {}"""
        ).format(sql.SQL("FOR UPDATE" if locks else ""), **_names(place))
    ).fetchone()
    return None if found is None else Follower(*found)


def is_another(connection: Connection, place: Place, server: ServerIdentity) -> bool:
    """Whether it is another server than this that follows, or did so last."""
    found = find(connection, place, locks=True)
    return found is not None and found.id != server.id


def claim(
    connection: Connection,
    table: Table,
    server: ServerIdentity,
    known: Collection[str],
    *,
    is_first: bool,
    begins_anew: bool,
) -> bool:
    """See Outside.claim. is_first: this process has not followed yet.

    A process that starts goes on at once after one that died with the same data folder; one that
    has followed already and finds another of that id is beside a copy of its folder.
    """
    place = table.place
    if not is_installed(connection, place):
        raise OutsideMismatchError(
            f"what noted the changes of {place.words} is gone: pull it again"
        )
    last = find(connection, place, locks=True)
    is_mine = last is None or last.process == server.process or (is_first and last.id == server.id)
    if last is not None and not is_mine:
        if last.is_alive:
            raise refusal(place, last)
        check_alone(table, known)
        if not begins_anew:
            return False
    take(connection, place, server)
    return True


def take(connection: Connection, place: Place, server: ServerIdentity) -> None:
    """Be the one that follows."""
    connection.execute(
        sql.SQL(
            """INSERT INTO {server} (id, process, words, seen_at)
            VALUES (%(id)s, %(process)s, %(words)s, clock_timestamp())
            ON CONFLICT (only_one) DO UPDATE SET id = %(id)s, process = %(process)s,
                words = %(words)s, seen_at = clock_timestamp()"""
        ).format(**_names(place)),
        {"id": server.id, "process": server.process, "words": server.words},
    )


def renew(connection: Connection, place: Place, server: ServerIdentity) -> None:
    """Go on being the one, and let no other be until the transaction ends.

    Raises OutsideUnavailableError where another has taken its place.
    """
    renewed = connection.execute(
        sql.SQL("UPDATE {server} SET seen_at = clock_timestamp() WHERE process = %s").format(
            **_names(place)
        ),
        (server.process,),
    )
    if not renewed.rowcount:
        raise refusal(place, find(connection, place))


def renew_unless_held(connection: Connection, place: Place, server: ServerIdentity) -> None:
    """Likewise, from beside a transaction that may have done so and has not ended yet."""
    connection.execute(
        sql.SQL(
            """UPDATE {server} SET seen_at = clock_timestamp() WHERE only_one IN
            (SELECT only_one FROM {server} WHERE process = %s FOR UPDATE SKIP LOCKED)"""
        ).format(**_names(place)),
        (server.process,),
    )


def check_no_other(connection: Connection, place: Place, server: ServerIdentity) -> None:
    """Raise OutsideUnavailableError where another server follows now."""
    found = find(connection, place)
    if found is not None and found.is_alive and found.id != server.id:
        raise refusal(place, found)


def refusal(place: Place, follower: Follower | None) -> OutsideUnavailableError:
    """What is said where another follows."""
    if follower is None:
        who = "no server; pull it again"
    else:
        who = (
            f"{follower.words}, which was seen {follower.seen_s:.0f} s ago, and a table has one: "
            "end that server, or unlink it there"
        )
    return OutsideUnavailableError(f"{place.words} is followed by {who}", retry_after_s=LEASE_S / 2)


def _names(place: Place) -> dict[str, sql.Identifier]:
    return {"server": sql.Identifier(place.schema, _PREFIX + place.table)}
