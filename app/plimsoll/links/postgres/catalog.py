"""What PostgreSQL's catalogs say of a table: its columns, the indexes of its vectors, its notes.

Functions over a connection that is in a transaction, which the caller holds. Which vectors a column
has stands in its comment, `[plimsoll: FINGERPRINT]`: a comment follows its column when that is
renamed, so that the state of a table can be read off the table alone.
"""

import re
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types import TypeInfo

from plimsoll.errors import OutsideMismatchError
from plimsoll.links.postgres.connection import Connection

NEXT, BEFORE = "_next", "_before"
"""What the name of the vector column gets behind it where others do not read it."""

ID_TYPES = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "uuid": "uuid",
    "text": "text",
    "varchar": "text",
}
TEXT_TYPES = ("text", "varchar")
MOST_NAME_BYTES = 63
_NOTE = re.compile(r"\s*\[plimsoll: (.*)\]$", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Names as the operator wrote them; variable: of the connection string."""

    schema: str
    table: str
    id: str
    text: str
    vector: str
    variable: str

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.schema}.{self.table} of {self.variable}"

    @property
    def sql(self) -> sql.Identifier:
        """For statements."""
        return sql.Identifier(self.schema, self.table)

    @property
    def next(self) -> str:
        """The column of vectors that are still to be read."""
        return self.vector + NEXT

    @property
    def before(self) -> str:
        """The column of vectors that were read before."""
        return self.vector + BEFORE


@dataclass(frozen=True)
class Column:
    """A column. dimensions: of a vector, -1 where its type says none. fingerprint: of its note."""

    name: str
    number: int
    kind: str
    type_schema: str
    type_oid: int
    dimensions: int
    is_not_null: bool
    comment: str | None

    @property
    def fingerprint(self) -> str | None:
        """Of the space of its vectors, as it was noted."""
        noted = _NOTE.search(self.comment or "")
        return noted.group(1) if noted else None

    def commented(self, fingerprint: str) -> str:
        """Its comment with another note."""
        return f"{_NOTE.sub('', self.comment or '')} [plimsoll: {fingerprint}]".strip()


@dataclass(frozen=True)
class VectorIndex:
    """An index over one vector column, as far as another like it is to be made."""

    name: str
    column: int
    method: str
    opclass_schema: str
    opclass: str
    options: tuple[str, ...]
    predicate: str | None
    is_valid: bool


@dataclass(frozen=True)
class Table:
    """A table as it is now."""

    place: Place
    oid: int
    columns: dict[str, Column]
    indexes: tuple[VectorIndex, ...]

    def column(self, name: str) -> Column:
        """The column of this name. Raises OutsideMismatchError."""
        if name not in self.columns:
            raise OutsideMismatchError(f"{self.place.words} has no column {name!r}")
        return self.columns[name]

    @property
    def active(self) -> Column:
        """The vector column that others read."""
        return self.column(self.place.vector)

    @property
    def vector_columns(self) -> list[Column]:
        """That, and the one beside it, if there is one."""
        names = (self.place.vector, self.place.next, self.place.before)
        return [self.columns[name] for name in names if name in self.columns]

    @property
    def id_type(self) -> str:
        """The type that ids are compared in. Raises OutsideMismatchError."""
        kind = self.column(self.place.id).kind
        if kind not in ID_TYPES:
            raise OutsideMismatchError(
                f"{self.place.words}: ids of type {kind} are not read; {', '.join(ID_TYPES)} are"
            )
        return ID_TYPES[kind]

    def of_space(self, fingerprint: str) -> Column | None:
        """The column with vectors of this space, as its note says."""
        return next(
            (column for column in self.vector_columns if column.fingerprint == fingerprint), None
        )

    def indexes_of(self, column: Column) -> list[VectorIndex]:
        """Indexes over a vector column."""
        return [index for index in self.indexes if index.column == column.number]


def look(connection: Connection, place: Place) -> Table:
    """Read what there is of the table. Raises OutsideMismatchError where there is none."""
    found = connection.execute(
        """SELECT relation.oid, relkind FROM pg_class relation
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname = %s AND relname = %s""",
        (place.schema, place.table),
    ).fetchone()
    if found is None:
        raise OutsideMismatchError(f"there is no table {place.words}")
    oid, kind = found
    if kind != "r":
        raise OutsideMismatchError(f"{place.words} is no plain table: views and partitions are not")
    table = Table(place, oid, _columns(connection, oid), _indexes(connection, oid))
    _register(connection, table.active)
    return table


def _columns(connection: Connection, oid: int) -> dict[str, Column]:
    found = connection.execute(
        """SELECT attname, attnum, typname, nspname, atttypid, atttypmod, attnotnull,
            col_description(attrelid, attnum)
        FROM pg_attribute
        JOIN pg_type ON pg_type.oid = atttypid
        JOIN pg_namespace ON pg_namespace.oid = typnamespace
        WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped""",
        (oid,),
    )
    return {row[0]: Column(*row) for row in found}


def _indexes(connection: Connection, oid: int) -> tuple[VectorIndex, ...]:
    """Those by a method of pgvector, which are over one column each."""
    found = connection.execute(
        """SELECT relation.relname, indkey[0], amname, nspname, opcname,
            coalesce(relation.reloptions, '{}'), pg_get_expr(indpred, indrelid), indisvalid
        FROM pg_index
        JOIN pg_class relation ON relation.oid = indexrelid
        JOIN pg_am ON pg_am.oid = relation.relam
        JOIN pg_opclass ON pg_opclass.oid = indclass[0]
        JOIN pg_namespace ON pg_namespace.oid = opcnamespace
        WHERE indrelid = %s AND amname IN ('hnsw', 'ivfflat') ORDER BY relation.relname""",
        (oid,),
    )
    return tuple(
        VectorIndex(name, column, method, schema, opclass, tuple(options), predicate, is_valid)
        for name, column, method, schema, opclass, options, predicate, is_valid in found
    )


def _register(connection: Connection, column: Column) -> None:
    """Have vectors come and go as NumPy arrays, in whichever schema the extension is."""
    from pgvector.psycopg.vector import register_vector_info

    if column.kind != "vector":
        raise OutsideMismatchError(
            f"the column {column.name!r} is of type {column.kind}, not of pgvector's vector"
        )
    register_vector_info(connection, TypeInfo("vector", column.type_oid, 0))


def views_of(connection: Connection, table: Table) -> list[str]:
    """Views that read the vector column: they would go on reading the same after a renaming."""
    found: Any = connection.execute(
        """SELECT DISTINCT ev_class::regclass::text FROM pg_depend
        JOIN pg_rewrite ON pg_rewrite.oid = objid
        WHERE classid = 'pg_rewrite'::regclass AND refobjid = %s AND refobjsubid = %s ORDER BY 1""",
        (table.oid, table.active.number),
    )
    return [name for (name,) in found]


def has_unique_id(connection: Connection, table: Table) -> bool:
    """Whether an index says that no two rows have the same id, and finds a row by it."""
    number = table.column(table.place.id).number
    (found,) = connection.execute(
        """SELECT EXISTS (SELECT 1 FROM pg_index WHERE indrelid = %s AND indisunique
        AND indisvalid AND indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = %s)""",
        (table.oid, number),
    ).fetchone() or (False,)
    return bool(found)
