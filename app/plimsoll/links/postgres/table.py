"""A table with a vector column as the outside home of a collection; see links/outside.py.

Owns its connection, one more for the length of a survey, and one to say that this server follows
while the first is busy. What writes, writes for the one server that follows. Rows are read in the
order of their ids. A vector is written only while its row is locked and has the text that was
embedded; rows that others hold are left for later, so that no write here waits for, or is in the
way of, another's.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from psycopg import sql

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideMismatchError
from plimsoll.links.outside import MOST_TEXT_BYTES, PAGE_BYTES, PAGE_ROWS, Having
from plimsoll.links.postgres import changes, columns, follower, survey
from plimsoll.links.postgres.catalog import Place, Table, look
from plimsoll.links.postgres.connection import Connection, PostgresConnection
from plimsoll.links.records import Changes, OutgoingRow, OutsideRow, OutsideRows, Pushed, Survey
from plimsoll.links.server import ServerIdentity

RENEWAL_TIMEOUT_MS = 5_000


class PostgresTable:
    """Reads rows, writes vectors, renames columns. url: a secret, which is never shown."""

    def __init__(self, place: Place, url: str, server: ServerIdentity) -> None:
        self._place = place
        self._identity = server
        self._server = PostgresConnection(url, place.variable)
        self._surveying = PostgresConnection(url, place.variable)
        self._renewing = PostgresConnection(url, place.variable)
        self._has_claimed = False
        self._renewed_s = monotonic()

    def survey(self) -> Survey:
        """Look, and change nothing."""
        try:
            with self._surveying.transaction(
                statement_timeout_ms=survey.TIMEOUT_MS, writes=False
            ) as connection:
                return survey.survey(connection, self._place, self._identity)
        finally:
            self._surveying.close()

    def follow(self, active: Space, *, is_first: bool = False) -> None:
        """Note the space of the vectors, and have triggers note changes."""
        with self._server.transaction() as connection:
            follower.check_no_other(connection, self._place, self._identity)
            table = look(connection, self._place)
            survey.check(connection, table)
            if is_first:
                columns.check_alone(table)
            columns.note_active(connection, table, active)
            changes.install(connection, table)
            follower.install(connection, self._place)
            last = follower.find(connection, self._place)
            if last is None or last.id == self._identity.id:  # else `claim` has to begin anew
                follower.take(connection, self._place, self._identity)

    def unfollow(self) -> None:
        """Remove the triggers and what they noted."""
        with self._server.transaction() as connection:
            if not follower.is_another(connection, self._place, self._identity):
                changes.remove(connection, self._place)
                follower.remove(connection, self._place)

    def claim(self, known: Collection[str], *, begins_anew: bool = False) -> bool:
        """Renew this server's row, or take the place of one that is taken for dead."""
        with self._server.transaction() as connection:
            is_claimed = follower.claim(
                connection,
                look(connection, self._place),
                self._identity,
                known,
                is_first=not self._has_claimed,
                begins_anew=begins_anew,
            )
        if is_claimed:
            self._has_claimed, self._renewed_s = True, monotonic()
        return is_claimed

    def keep_claim(self) -> None:
        """Renew this server's row where that has not been done lately; on another connection."""
        if monotonic() < self._renewed_s + follower.LEASE_S / 3:
            return
        try:
            with self._renewing.transaction(statement_timeout_ms=RENEWAL_TIMEOUT_MS) as connection:
                follower.renew_unless_held(connection, self._place, self._identity)
        finally:
            self._renewing.close()

    def active(self) -> str | None:
        """As the comment of the vector column says."""
        with self._server.transaction(writes=False) as connection:
            return look(connection, self._place).active.fingerprint

    def page(self, position: str | None) -> OutsideRows:
        """The next rows in the order of their ids; a position is the last id."""
        with self._server.transaction(writes=False) as connection:
            table = look(connection, self._place)
            behind = sql.SQL("") if position is None else sql.SQL("WHERE {id} > {last}")
            sizes = connection.execute(
                sql.SQL(
                    """SELECT {id}::text, octet_length({text}) FROM {table} """
                    """{behind} ORDER BY {id} LIMIT {most}"""
                ).format(
                    **_names(table),
                    behind=behind.format(**_names(table), last=_as_id(table, position)),
                    most=sql.Literal(PAGE_ROWS),
                )
            ).fetchall()
            ids = _fitting(sizes)
            return OutsideRows(
                _rows(connection, table, ids),
                table.active.fingerprint,
                ids[-1] if ids else None,
            )

    def changes(self, most: int) -> Changes:
        """What the triggers noted, the first of it first."""
        with self._server.transaction(writes=False) as connection:
            return changes.read(connection, self._place, most)

    def rows(self, ids: Sequence[str]) -> OutsideRows:
        """Rows by their ids."""
        with self._server.transaction(writes=False) as connection:
            table = look(connection, self._place)
            sizes = connection.execute(
                sql.SQL(
                    "SELECT asked, octet_length({text}) "
                    "FROM unnest(%s::text[]) WITH ORDINALITY AS given (asked, place) "
                    "LEFT JOIN {table} ON {id} = asked::{type} ORDER BY place"
                ).format(**_names(table)),
                (list(ids),),
            ).fetchall()
            fitting = _fitting(sizes)
            return OutsideRows(
                _rows(connection, table, fitting),
                table.active.fingerprint,
                left=[row_id for row_id, _ in sizes[len(fitting) :]],
            )

    def forget(self, changes_: Changes) -> None:
        """Delete what the triggers noted of these."""
        with self._following() as connection:
            changes.forget(connection, self._place, changes_)

    def has_place(self, space: Space) -> bool:
        """Whether a column is of this space, as its comment says."""
        with self._server.transaction(writes=False) as connection:
            return look(connection, self._place).of_space(space.fingerprint) is not None

    def prepare(self, space: Space) -> None:
        """Add a column beside the one that others read."""
        if self.has_place(space):
            return
        with self._following() as connection:
            columns.add(connection, look(connection, self._place), space)

    def push(self, space: Space, rows: Sequence[OutgoingRow]) -> Pushed:
        """Write vectors into rows whose text is the one that was embedded."""
        with self._following() as connection:
            table = look(connection, self._place)
            column = table.of_space(space.fingerprint)
            if column is None:
                raise OutsideMismatchError(
                    f"{self._place.words} has no column of {space.fingerprint!r} any more"
                )
            asked = [row.id for row in rows]
            now = dict(_locked_hashes(connection, table, asked))
            fitting = [row for row in rows if now.get(row.id) == row.text_sha256]
            with connection.cursor() as cursor:
                cursor.executemany(
                    sql.SQL(
                        "UPDATE {table} SET {column} = %(vector)s WHERE {id} = %(id)s::{type} "
                        "AND (ours.{column} IS NULL "
                        "OR NOT ours.{column} OPERATOR({schema}.=) %(vector)s)"
                    ).format(
                        **_names(table),
                        column=sql.Identifier(column.name),
                        schema=sql.Identifier(column.type_schema),
                    ),
                    [{"id": row.id, "vector": row.vector} for row in fitting],
                )
            stored = frozenset(row.id for row in fitting)
            others = [row_id for row_id in asked if row_id not in stored]
            held = _there(connection, table, [each for each in others if each not in now])
            return Pushed(stored, frozenset(others) - held)

    def finish(self, space: Space, having: Having) -> None:
        """Build the indexes; rows that are gone have taken their vectors along."""
        columns.build_indexes(self._server, self._place, space)

    def switch(self, space: Space) -> str:
        """Rename columns and indexes in one transaction."""
        with self._following() as connection:
            return columns.switch(connection, self._place, space)

    def settle(self, having: Having) -> str | None:
        """Nothing is left to do: a row is read as it was pushed."""
        return None

    def drop_all_but(self, kept: Collection[str]) -> Sequence[str]:
        """Drop columns that Plimsoll made and that are needed no more."""
        with self._server.transaction() as connection:
            if follower.is_another(connection, self._place, self._identity):
                return ()
            return columns.drop_all_but(connection, look(connection, self._place), kept)

    def interrupt(self) -> None:
        """Have the server cancel the statement that is under way."""
        self._server.interrupt()

    def close(self) -> None:
        """Let go of the connection."""
        self._server.close()

    @contextmanager
    def _following(self) -> Iterator[Connection]:
        """A transaction of the one server that follows. Raises OutsideUnavailableError."""
        with self._server.transaction() as connection:
            follower.renew(connection, self._place, self._identity)
            yield connection
        self._renewed_s = monotonic()


def _names(table: Table) -> dict[str, sql.Composable]:
    """For statements. Columns are told from those of the result, which ORDER BY would prefer."""
    place = table.place
    return {
        "table": sql.SQL("{} AS ours").format(place.sql),
        "id": sql.Identifier("ours", place.id),
        "text": sql.Identifier("ours", place.text),
        "vector": sql.Identifier("ours", place.vector),
        "type": sql.SQL(table.id_type),  # one of a few that are known
    }


def _as_id(table: Table, position: str | None) -> sql.Composable:
    return sql.SQL("{}::{}").format(sql.Literal(position), _names(table)["type"])


def _fitting(sizes: Sequence[tuple[str, int | None]]) -> list[str]:
    """The first ids whose texts make a page, one at least."""
    ids, total_bytes = list[str](), 0
    for row_id, n_bytes in sizes[:PAGE_ROWS]:
        total_bytes += min(n_bytes or 0, MOST_TEXT_BYTES)
        if ids and total_bytes > PAGE_BYTES:
            break
        ids.append(row_id)
    return ids


def _rows(connection: Connection, table: Table, ids: Sequence[str]) -> list[OutsideRow]:
    """The rows as they are now, in the order asked for.

    What is noted of their changes is read with them: of another moment it could be of other texts.
    """
    found = connection.execute(
        sql.SQL(
            "SELECT {id}::text, CASE WHEN octet_length({text}) <= %(most)s THEN {text} END, "
            "{vector}, noted.is_stale "
            "FROM {table} LEFT JOIN ({last_words}) AS noted ON noted.id = {id}::text "
            "WHERE {id} = ANY(%(ids)s::{type}[])"
        ).format(**_names(table), last_words=changes.last_words(table.place)),
        {"most": MOST_TEXT_BYTES, "ids": list(ids)},
        binary=True,
    )
    by_id = {
        row_id: OutsideRow(row_id, text, None if vector is None else vector.to_numpy(), is_stale)
        for row_id, text, vector, is_stale in found
    }
    return [by_id[row_id] for row_id in ids if row_id in by_id]


def _locked_hashes(
    connection: Connection, table: Table, ids: Sequence[str]
) -> list[tuple[str, bytes | None]]:
    """SHA-256 of the texts of rows that are locked from now on; those that others hold are out."""
    found: list[tuple[str, bytes | None]] = connection.execute(
        sql.SQL(
            "SELECT {id}::text, sha256(convert_to({text}, 'UTF8')) FROM {table} "
            "WHERE {id} = ANY(%s::{type}[]) FOR NO KEY UPDATE SKIP LOCKED"
        ).format(**_names(table)),
        (list(ids),),
    ).fetchall()
    return found


def _there(connection: Connection, table: Table, ids: Sequence[str]) -> frozenset[str]:
    """Those of the ids that a row has."""
    found = connection.execute(
        sql.SQL("SELECT {id}::text FROM {table} WHERE {id} = ANY(%s::{type}[])").format(
            **_names(table)
        ),
        (list(ids),),
    )
    return frozenset(row_id for (row_id,) in found)
