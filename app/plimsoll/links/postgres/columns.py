"""The columns of vectors: one made beside the one that others read, indexed, and put in its place.

A renaming is one transaction: applications find the other vectors, and the other index, under the
names that they know. Each step looks at the table first, and does what is left to do.
"""

from collections.abc import Collection, Sequence

from psycopg import sql
from psycopg.errors import DependentObjectsStillExist

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideMismatchError
from plimsoll.links.postgres import changes
from plimsoll.links.postgres.catalog import BEFORE, NEXT, Column, Place, Table, VectorIndex, look
from plimsoll.links.postgres.connection import Connection, PostgresConnection

MOST_INDEXED = 2000
"""Values of a vector that pgvector indexes."""


def note_active(connection: Connection, table: Table, space: Space) -> None:
    """Note of which space the vectors are that others read.

    Raises OutsideMismatchError where the note says otherwise, or their number of values does.
    """
    column = table.active
    if column.fingerprint not in (None, space.fingerprint):
        raise OutsideMismatchError(
            f"the vectors of {table.place.words} are of {column.fingerprint!r}, as the comment of "
            f"the column {column.name!r} says, not of {space.fingerprint!r}"
        )
    if column.dimensions != space.dimensions:
        raise OutsideMismatchError(
            f"the column {column.name!r} of {table.place.words} {_size(column)}, not vectors of "
            f"{space.dimensions} values"
        )
    if column.fingerprint is None:
        _note(connection, table.place, column.name, column.commented(space.fingerprint))


def check_alone(table: Table, known: Collection[str] = ()) -> None:
    """Raise OutsideMismatchError where there are vectors of a migration that is not known here.

    known: fingerprints of vectors that are; without any, only those that others read are.
    """
    active = table.active
    if known and active.fingerprint not in known:
        raise OutsideMismatchError(
            f"others read vectors of {active.fingerprint!r} in {table.place.words}, of which there "
            "are none here: another server has moved it. Unlink it here, and pull it under "
            "another name"
        )
    for column in table.vector_columns:
        if column.name != active.name and column.fingerprint not in (None, *known):
            raise OutsideMismatchError(
                f"{table.place.words} has a column {column.name!r} with vectors of "
                f"{column.fingerprint!r} from another server, or from before a data folder was "
                "lost: end the migration there, or put the folder back; if you need them no more, "
                "drop the column"
            )


def add(connection: Connection, table: Table, space: Space) -> None:
    """Add the column of a further space. Raises OutsideMismatchError where another is in its place.

    A column without a default is added without touching a row.
    """
    if table.of_space(space.fingerprint) is not None:
        return
    place, active = table.place, table.active
    for name in (place.next, place.before):
        if name in table.columns:
            raise OutsideMismatchError(
                f"{place.words} has a column {name!r} already, which stands where Plimsoll puts "
                "vectors: drop or rename it"
            )
    if space.dimensions > MOST_INDEXED and table.indexes_of(active):
        raise OutsideMismatchError(
            f"pgvector indexes up to {MOST_INDEXED} values, and {space.model!r} has "
            f"{space.dimensions}: ask for fewer dimensions, or drop the index of {active.name!r}"
        )
    connection.execute(
        sql.SQL("ALTER TABLE {} ADD COLUMN {} {}({})").format(
            place.sql,
            sql.Identifier(place.next),
            sql.Identifier(active.type_schema, active.kind),
            sql.Literal(space.dimensions),
        )
    )
    _note(connection, place, place.next, f"[plimsoll: {space.fingerprint}]")


def build_indexes(server: PostgresConnection, place: Place, space: Space) -> None:
    """Give a column that is to be read every index that the one has which is read now.

    Reads and writes of the table go on meanwhile. One that was left half made is made anew.
    """
    with server.transaction(writes=False) as connection:
        table = look(connection, place)
    column = _column(table, space)
    if column.name != place.next:  # it has its own already
        return
    there = {index.name: index for index in table.indexes_of(column)}
    for index in table.indexes_of(table.active):
        made = there.get(index.name + NEXT)
        if made is not None and made.is_valid:
            continue
        if made is not None:
            server.alone(
                sql.SQL("DROP INDEX CONCURRENTLY {}").format(
                    sql.Identifier(place.schema, made.name)
                )
            )
        server.alone(_index(place, index, column))


def switch(connection: Connection, place: Place, space: Space) -> str:
    """Let others read the column of this space, and keep the other beside it; says what was done.

    Raises OutsideMismatchError where the table has none of it.
    """
    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(place.sql))
    table = look(connection, place)  # as it is, now that no other can change it
    column, active = _column(table, space), table.active
    if column.name == place.vector:
        return f"{place.words}: {place.vector} was of {space.fingerprint} already"
    goes, comes = (BEFORE, NEXT) if column.name == place.next else (NEXT, BEFORE)
    for index in table.indexes_of(active):
        _rename_index(connection, place, index.name, index.name + goes)
    for index in table.indexes_of(column):
        _rename_index(connection, place, index.name, index.name.removesuffix(comes))
    _rename(connection, place, active.name, place.vector + goes)
    _rename(connection, place, column.name, place.vector)
    changes.install(connection, look(connection, place))  # which compare what others write
    changes.doubt_vectors(connection, place)
    return (
        f"{place.words}: {place.vector} is of {space.fingerprint}, and what it was is "
        f"{place.vector + goes}"
    )


def drop_all_but(connection: Connection, table: Table, kept: Collection[str]) -> Sequence[str]:
    """Drop columns of other spaces that others do not read, with their indexes.

    Raises OutsideMismatchError where a view, or the like, reads one of them.
    """
    done = []
    for column in table.vector_columns:
        is_ours = column.name != table.place.vector and column.fingerprint is not None
        if is_ours and column.fingerprint not in kept:
            drop = sql.SQL("ALTER TABLE {} DROP COLUMN {}")
            try:
                connection.execute(drop.format(table.place.sql, sql.Identifier(column.name)))
            except DependentObjectsStillExist as error:
                raise OutsideMismatchError(
                    f"{table.place.words}: {column.name} stays for now, since "
                    f"{error.diag.message_detail}: make that again over {table.place.vector}, or "
                    "drop it; the column and what notes changes go then"
                ) from error
            done.append(f"{table.place.words}: {column.name} is dropped")
    return done


def _column(table: Table, space: Space) -> Column:
    column = table.of_space(space.fingerprint)
    if column is None:
        raise OutsideMismatchError(
            f"{table.place.words} has no vectors of {space.fingerprint!r}, as the comments of its "
            "columns say"
        )
    return column


def _size(column: Column) -> str:
    """What a vector column says of its vectors."""
    if column.dimensions < 0:
        return "says no number of values, as vector(384) does,"
    return f"has vectors of {column.dimensions} values"


def _index(place: Place, like: VectorIndex, column: Column) -> sql.Composed:
    options = [
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, _, value in (option.partition("=") for option in like.options)
    ]
    return sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING {} ({} {}){}{}").format(
        sql.Identifier(like.name + NEXT),
        place.sql,
        sql.Identifier(like.method),
        sql.Identifier(column.name),
        sql.Identifier(like.opclass_schema, like.opclass),
        sql.SQL(" WITH ({})").format(sql.SQL(", ").join(options)) if options else sql.SQL(""),
        # As the server itself writes it.
        sql.SQL(f" WHERE {like.predicate}") if like.predicate else sql.SQL(""),
    )


def _note(connection: Connection, place: Place, column: str, comment: str) -> None:
    connection.execute(
        sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(
            place.sql, sql.Identifier(column), sql.Literal(comment)
        )
    )


def _rename(connection: Connection, place: Place, name: str, other: str) -> None:
    connection.execute(
        sql.SQL("ALTER TABLE {} RENAME COLUMN {} TO {}").format(
            place.sql, sql.Identifier(name), sql.Identifier(other)
        )
    )


def _rename_index(connection: Connection, place: Place, name: str, other: str) -> None:
    connection.execute(
        sql.SQL("ALTER INDEX {} RENAME TO {}").format(
            sql.Identifier(place.schema, name), sql.Identifier(other)
        )
    )
