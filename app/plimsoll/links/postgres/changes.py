"""What notes the changes of a table, in the table's own schema.

Triggers write the ids of rows that came, changed or went into a small table, in the transaction of
the change: what commits is noted, and nothing else is. Plimsoll's own writes are left out. All of
it goes again with `remove`. Functions over a connection that is in a transaction.

Marks are drawn before they commit, so a lower one may come to light after a higher one: what is
forgotten is forgotten mark by mark. Those of one row are in the order of its changes, since each is
drawn while the row is locked.

A mark says what a change did to the row's vector: `is_stale` where the text changed and the vector
did not, false where the vector changed or came with the row, NULL where it did neither. So the last
one that says something tells whether the vector is of the present text.
"""

from psycopg import sql

from plimsoll.links.postgres.catalog import MOST_NAME_BYTES, Column, Place, Table
from plimsoll.links.postgres.connection import Connection
from plimsoll.links.records import Changes

_PREFIX = "plimsoll_changes_"
_TRIGGERS = ("plimsoll_rows", "plimsoll_changed_rows", "plimsoll_truncated")
MOST_TABLE_NAME_BYTES = MOST_NAME_BYTES - len(_PREFIX)


def install(connection: Connection, table: Table) -> None:
    """Note changes from now on, of the columns as they are named now. May be repeated."""
    names = _names(table.place)
    connection.execute(
        sql.SQL(
            """CREATE TABLE IF NOT EXISTS {changes} (
                mark bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text, is_stale boolean)"""
        ).format(**names)
    )
    vector_differs = _differs(table.active)
    # It writes with the rights of its owner: others need none in the table of changes.
    connection.execute(
        sql.SQL(
            """CREATE OR REPLACE FUNCTION {changes}() RETURNS trigger LANGUAGE plpgsql
            SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
            BEGIN
                IF TG_OP = 'TRUNCATE' THEN
                    INSERT INTO {changes} (id) VALUES (NULL);
                ELSIF TG_OP = 'INSERT' THEN
                    INSERT INTO {changes} (id, is_stale) VALUES (NEW.{id}::text, false);
                ELSIF TG_OP = 'DELETE' THEN
                    INSERT INTO {changes} (id) VALUES (OLD.{id}::text);
                ELSE
                    IF NEW.{id} <> OLD.{id} THEN
                        INSERT INTO {changes} (id) VALUES (OLD.{id}::text);
                    END IF;
                    INSERT INTO {changes} (id, is_stale) VALUES (NEW.{id}::text, CASE
                        WHEN {vector_differs} THEN false
                        WHEN OLD.{text} IS DISTINCT FROM NEW.{text} THEN true END);
                END IF;
                RETURN NULL;
            END $body$"""
        ).format(**names, vector_differs=vector_differs)
    )
    is_other = sql.SQL("current_setting('plimsoll.pushing', true) IS DISTINCT FROM 'on'")
    differs = sql.SQL(
        """(OLD.{id} IS DISTINCT FROM NEW.{id} OR OLD.{text} IS DISTINCT FROM NEW.{text}
        OR {vector})"""
    ).format(**names, vector=vector_differs)
    events = (
        sql.SQL("AFTER INSERT OR DELETE ON {table} FOR EACH ROW WHEN ({})").format(
            is_other, **names
        ),
        sql.SQL("AFTER UPDATE ON {table} FOR EACH ROW WHEN ({} AND {})").format(
            is_other, differs, **names
        ),
        sql.SQL("AFTER TRUNCATE ON {table} FOR EACH STATEMENT").format(**names),
    )
    for name, event in zip(_TRIGGERS, events, strict=True):
        connection.execute(
            sql.SQL("CREATE OR REPLACE TRIGGER {} {} EXECUTE FUNCTION {changes}()").format(
                sql.Identifier(name), event, **names
            )
        )


def remove(connection: Connection, place: Place) -> None:
    """Note nothing any more; what was noted goes too. May be repeated."""
    names = _names(place)
    for name in _TRIGGERS:
        connection.execute(
            sql.SQL("DROP TRIGGER IF EXISTS {} ON {table}").format(sql.Identifier(name), **names)
        )
    connection.execute(sql.SQL("DROP FUNCTION IF EXISTS {changes}()").format(**names))
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {changes}").format(**names))


def read(connection: Connection, place: Place, most: int) -> Changes:
    """Up to so many that are not forgotten, the first ones first."""
    found = connection.execute(
        sql.SQL("SELECT mark, id FROM {changes} ORDER BY mark LIMIT %s").format(**_names(place)),
        (most,),
    ).fetchall()
    ids = dict.fromkeys(row_id for _, row_id in found)
    return Changes(
        [row_id for row_id in ids if row_id is not None], [mark for mark, _ in found], None in ids
    )


def forget(connection: Connection, place: Place, changes: Changes) -> None:
    """These have been taken in."""
    connection.execute(
        sql.SQL("DELETE FROM {changes} WHERE mark = ANY(%s)").format(**_names(place)),
        (list(changes.marks),),
    )


def doubt_vectors(connection: Connection, place: Place) -> None:
    """Others read another column now: what marks say of vectors is of the one they read before.

    A row whose text and vector changed has a vector of the text before in the other column.
    """
    connection.execute(
        sql.SQL("UPDATE {changes} SET is_stale = true WHERE NOT is_stale").format(**_names(place))
    )


def last_words(place: Place) -> sql.Composed:
    """A query for ids and `is_stale`: of each row of `%(ids)s`, text[], what its marks come to."""
    return sql.SQL(
        """SELECT DISTINCT ON (id) id, is_stale FROM {changes}
        WHERE id = ANY(%(ids)s::text[]) AND is_stale IS NOT NULL ORDER BY id, mark DESC"""
    ).format(**_names(place))


def count(connection: Connection, place: Place) -> int:
    """How many are noted; 0 where nothing is."""
    (is_there,) = connection.execute(
        "SELECT to_regclass(%s) IS NOT NULL", (_names(place)["changes"].as_string(connection),)
    ).fetchone() or (False,)
    if not is_there:
        return 0
    (n,) = connection.execute(
        sql.SQL("SELECT count(*) FROM {changes}").format(**_names(place))
    ).fetchone() or (0,)
    return int(n)


def _names(place: Place) -> dict[str, sql.Identifier]:
    return {
        "table": place.sql,
        "changes": sql.Identifier(place.schema, _PREFIX + place.table),
        "id": sql.Identifier(place.id),
        "text": sql.Identifier(place.text),
    }


def _differs(column: Column) -> sql.Composed:
    """Whether a row's vector is another: by pgvector's own operator, wherever that is."""
    return sql.SQL(
        """((OLD.{0} IS NULL) <> (NEW.{0} IS NULL) OR NOT (OLD.{0} OPERATOR({1}.=) NEW.{0}))"""
    ).format(sql.Identifier(column.name), sql.Identifier(column.type_schema))
