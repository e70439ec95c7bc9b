"""What there is to know of a table before it is linked: how much is there, and what is in the way.

Reads only. `check` raises what `survey` tells.
"""

from psycopg import sql

from plimsoll.errors import OutsideMismatchError
from plimsoll.links.outside import MOST_TEXT_BYTES
from plimsoll.links.postgres import changes, follower
from plimsoll.links.postgres.catalog import (
    BEFORE,
    ID_TYPES,
    MOST_NAME_BYTES,
    TEXT_TYPES,
    Place,
    Table,
    has_unique_id,
    look,
    views_of,
)
from plimsoll.links.postgres.connection import Connection
from plimsoll.links.records import Finding, Survey
from plimsoll.links.server import ServerIdentity

TIMEOUT_MS = 600_000  # a survey counts every row
LEAST_VERSION = 140000  # of the server: CREATE OR REPLACE TRIGGER


def survey(connection: Connection, place: Place, server: ServerIdentity) -> Survey:
    """Look at a table. Raises OutsideMismatchError where there is none of this kind."""
    table = look(connection, place)
    table.column(place.id), table.column(place.text)
    n_rows, n_without_text, n_too_long, n_without_vector = connection.execute(
        sql.SQL(
            """SELECT count(*), count(*) FILTER (WHERE {text} IS NULL),
            count(*) FILTER (WHERE octet_length({text}) > {most}),
            count(*) FILTER (WHERE {vector} IS NULL) FROM {table}"""
        ).format(
            text=sql.Identifier(place.text),
            vector=sql.Identifier(place.vector),
            most=sql.Literal(MOST_TEXT_BYTES),
            table=place.sql,
        )
    ).fetchone() or (0, 0, 0, 0)
    findings = _findings(connection, table)
    other = follower.find(connection, place)
    if other is not None and other.is_alive and other.id != server.id:
        findings.append(Finding(str(follower.refusal(place, other)), blocks=True))
    if n_too_long:
        most = f"{MOST_TEXT_BYTES >> 20} MiB"
        findings.append(Finding(f"{n_too_long} texts are longer than {most} and taken for none"))
    return Survey(
        where=place.words,
        n_rows=n_rows,
        n_without_text=n_without_text + n_too_long,
        n_without_vector=n_without_vector,
        dimensions=table.active.dimensions if table.active.dimensions > 0 else None,
        active=table.active.fingerprint,
        n_changes=changes.count(connection, place),
        findings=findings,
    )


def check(connection: Connection, table: Table) -> None:
    """Raise OutsideMismatchError where a table cannot be linked."""
    blocking = [each.message for each in _findings(connection, table) if each.blocks]
    if blocking:
        raise OutsideMismatchError(f"{table.place.words}: {'; '.join(blocking)}")


def _findings(connection: Connection, table: Table) -> list[Finding]:
    place, active = table.place, table.active
    blocking = [
        *_of_columns(connection, table),
        *_of_rights(connection, table),
        *_of_names(table),
    ]
    found = [Finding(message, blocks=True) for message in blocking]
    found += [
        Finding(
            f"the view {view} goes on reading the old vectors after a cut-over, and stands in the "
            "way of a purge: make it again after the cut-over"
        )
        for view in views_of(connection, table)
    ]
    if not table.indexes_of(active):
        found.append(Finding(f"no index on {place.vector}: none is made for other vectors either"))
    return found


def _of_columns(connection: Connection, table: Table) -> list[str]:
    place, active = table.place, table.active
    id_kind, text_kind = table.column(place.id).kind, table.column(place.text).kind
    found = []
    if id_kind not in ID_TYPES:
        found.append(f"{place.id} is of type {id_kind}; ids are {', '.join(ID_TYPES)}")
    if not has_unique_id(connection, table):
        found.append(f"{place.id} has no unique index of its own, such as a primary key")
    if not table.column(place.id).is_not_null:
        found.append(
            f"{place.id} may be NULL, and a row is known by it: ALTER TABLE … ALTER COLUMN "
            f"{place.id} SET NOT NULL"
        )
    if text_kind not in TEXT_TYPES:
        found.append(f"{place.text} is of type {text_kind}, not text")
    if active.dimensions < 0:
        found.append(
            f"the type of {place.vector} says no number of values: ALTER TABLE … ALTER COLUMN "
            f"{place.vector} TYPE vector(1536), or as many as there are"
        )
    if active.is_not_null:
        found.append(
            f"{place.vector} is NOT NULL, and rows are to wait for their vector: ALTER TABLE … "
            f"ALTER COLUMN {place.vector} DROP NOT NULL"
        )
    found += [
        f"there is a column {column.name} already, where Plimsoll puts vectors: rename it"
        for column in table.vector_columns
        if column.name != place.vector and column.fingerprint is None
    ]
    return found


def _of_rights(connection: Connection, table: Table) -> list[str]:
    version, is_standby, owns, may_create = connection.execute(
        """SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
            pg_has_role(relowner, 'USAGE'), has_schema_privilege(relnamespace, 'CREATE')
        FROM pg_class WHERE oid = %s""",
        (table.oid,),
    ).fetchone() or (0, False, False, False)
    found = []
    if version < LEAST_VERSION:
        found.append("the server is older than PostgreSQL 14")
    if is_standby:
        found.append("the server is a standby, which cannot be written to: name the primary")
    if not owns:
        found.append(
            "the user does not own the table, and only its owner adds and renames columns: name "
            "that user in the connection string, or GRANT its role"
        )
    if not may_create:
        found.append(
            f"the user may make no table in the schema {table.place.schema}: GRANT CREATE on it"
        )
    return found


def _of_names(table: Table) -> list[str]:
    """Names that have no room for what Plimsoll puts before or behind them."""
    room = MOST_NAME_BYTES - len(BEFORE)
    names = [table.place.vector, *(index.name for index in table.indexes_of(table.active))]
    found = [
        f"the name {name} is longer than {room} bytes: rename it"
        for name in names
        if len(name.encode()) > room
    ]
    if len(table.place.table.encode()) > changes.MOST_TABLE_NAME_BYTES:
        found.append(
            f"the table's name is longer than {changes.MOST_TABLE_NAME_BYTES} bytes: rename it"
        )
    return found
