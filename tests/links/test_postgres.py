"""A table of a real PostgreSQL as the home of documents: read, followed, written, switched."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

import numpy as np
import psycopg
import pytest
from psycopg import sql

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.outside import MOST_TEXT_BYTES, PAGE_ROWS
from plimsoll.links.postgres.table import PostgresTable
from tests.links.conftest import HOME, NEW, make_table, outgoing, vector_of
from tests.postgres_server import DEADLINE_S, PASSWORD, PostgresServer


def nothing(ids):
    return frozenset(ids)


def columns(application: psycopg.Connection, table: str = "ships") -> set[str]:
    found = application.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
        "AND NOT attisdropped",
        (table,),
    )
    return {name for (name,) in found}


def indexes(application: psycopg.Connection) -> dict[str, str]:
    found = application.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'"
    )
    return dict(found.fetchall())


def read_all(table: PostgresTable) -> dict[str, tuple[str | None, list[float] | None]]:
    rows, position = {}, None
    while (page := table.page(position)).position is not None:
        position = page.position
        for row in page.rows:
            rows[row.id] = (row.text, None if row.vector is None else row.vector.tolist())
    return rows


@pytest.mark.parametrize("id_type", ["text", "integer", "bigint", "uuid", "varchar(40)"])
def test_every_row_is_read_once_whatever_its_id(application, linked, id_type):
    """Pages go on behind the last id: one that is compared as another type would skip rows."""
    application.execute(f"CREATE TABLE ships (id {id_type} PRIMARY KEY, text text, vector vector)")
    application.execute("ALTER TABLE ships ALTER COLUMN vector TYPE vector(3)")
    n = 2 * PAGE_ROWS + 3
    ids = [
        str(uuid.UUID(int=number * 7919)) if id_type == "uuid" else str(number * 9 - 50)
        for number in range(n)
    ]
    with application.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO ships VALUES (%s::{id_type}, %s, %s)",
            [(row_id, f"ship {row_id}", "[1,2,3]") for row_id in ids],
        )
    table = linked()
    table.follow(HOME)
    assert read_all(table) == {row_id: (f"ship {row_id}", [1, 2, 3]) for row_id in ids}
    assert {row.id for row in table.rows(ids[:5]).rows} == {*ids[:5]}


def test_names_that_need_quotes_are_taken_as_they_are(application, linked):
    """An operator's table may be called anything; nothing of it may reach the server as SQL."""
    names = {
        "schema": 'old "port"',
        "table": "Ships; DROP TABLE ships",
        "id": "Id'",
        "text": "the text",
        "vector": 'Vec"tor',
    }
    quoted = {key: sql.Identifier(name) for key, name in names.items()}
    application.execute(sql.SQL("CREATE SCHEMA {schema}").format(**quoted))
    application.execute(
        sql.SQL(
            "CREATE TABLE {schema}.{table} ({id} text PRIMARY KEY, {text} text, {vector} vector(3))"
        ).format(**quoted)
    )
    insert = sql.SQL("INSERT INTO {schema}.{table} VALUES (%s, %s, '[1,2,3]')").format(**quoted)
    application.execute(
        sql.SQL("CREATE INDEX {} ON {schema}.{table} USING hnsw ({vector} vector_l2_ops)").format(
            sql.Identifier("My Index"), **quoted
        )
    )
    table = linked(**names)
    table.follow(HOME)
    application.execute(insert, ("it's", "a ship"))
    assert table.changes(10).ids == ["it's"]
    table.prepare(NEW)
    assert table.push(NEW, [outgoing("it's", "a ship", 7)]).stored == {"it's"}
    table.finish(NEW, nothing)
    table.switch(NEW)
    found = application.execute(
        sql.SQL("SELECT {vector}::text FROM {schema}.{table}").format(**quoted)
    )
    assert found.fetchall() == [("[7,8,9,10]",)]
    table.switch(HOME)
    table.drop_all_but({HOME.fingerprint})
    table.unfollow()


def test_a_row_without_text_or_vector_says_so_and_a_text_too_long_is_none(ships, application):
    """What cannot become a document must not stop the rest, or fill memory."""
    application.execute("INSERT INTO ships VALUES ('a', NULL, '[1,2,3]'), ('b', 'no vector', NULL)")
    application.execute("INSERT INTO ships VALUES ('c', repeat('x', %s))", (MOST_TEXT_BYTES + 1,))
    rows = read_all(ships)
    assert rows["a"] == (None, [1, 2, 3])
    assert rows["b"] == ("no vector", None)
    assert rows["c"] == (None, None)
    survey = ships.survey()
    assert (survey.n_rows, survey.n_without_text, survey.n_without_vector) == (8, 2, 2)


def test_long_texts_come_in_parts(ships, application):
    """A page is bounded in bytes: what was asked for and not read is named."""
    for number in range(4):
        application.execute("UPDATE ships SET text = repeat('x', 300000) WHERE id = %s",
                            (f"s{number}",))  # fmt: skip
    found = ships.rows(["s0", "s1", "s2", "gone", "s4"])
    assert [row.id for row in found.rows] == ["s0"]
    assert found.left == ["s1", "s2", "gone", "s4"]
    assert len(read_all(ships)) == 5


def test_changes_of_others_are_noted_once_and_our_own_are_not(ships, application):
    """A push that came back as a change would be embedded and pushed for ever."""
    ships.prepare(NEW)
    ships.push(NEW, [outgoing("s0", "ship 0")])
    assert ships.changes(10).ids == []
    application.execute("UPDATE ships SET text = 'other' WHERE id = 's1'")
    application.execute("UPDATE ships SET text = 'another' WHERE id = 's1'")
    application.execute("UPDATE ships SET text = text WHERE id = 's2'")
    application.execute("UPDATE ships SET vector = '[9,9,9]' WHERE id = 's2'")
    application.execute("UPDATE ships SET vector_next = NULL WHERE id = 's3'")
    application.execute("DELETE FROM ships WHERE id = 's3'")
    application.execute("INSERT INTO ships VALUES ('s9', 'new', NULL)")
    application.execute("UPDATE ships SET id = 's8' WHERE id = 's4'")
    noted = ships.changes(100)
    assert noted.ids == ["s1", "s2", "s3", "s9", "s4", "s8"]
    assert not noted.is_everything
    ships.forget(noted)
    assert ships.changes(10).ids == []


def test_what_commits_late_is_not_forgotten_with_what_came_before_it(ships, application, url):
    """Marks are drawn before they commit: a lower one may come to light after a higher one."""
    with psycopg.connect(url) as slow:
        slow.execute("UPDATE ships SET text = 'slow' WHERE id = 's0'")
        application.execute("UPDATE ships SET text = 'quick' WHERE id = 's1'")
        noted = ships.changes(10)
        assert noted.ids == ["s1"]
        slow.commit()
    ships.forget(noted)
    assert ships.changes(10).ids == ["s0"]


def test_a_table_that_is_emptied_at_once_has_changed_everywhere(ships, application):
    """TRUNCATE tells of no row."""
    application.execute("TRUNCATE ships")
    assert ships.changes(10).is_everything


def test_a_vector_goes_only_to_the_text_that_was_embedded(ships, application):
    """Between reading and pushing a row may change or go: its new text must not get this vector."""
    ships.prepare(NEW)
    application.execute("UPDATE ships SET text = 'other' WHERE id = 's1'")
    application.execute("DELETE FROM ships WHERE id = 's2'")
    asked = [outgoing(f"s{number}", f"ship {number}", number) for number in range(4)]
    pushed = ships.push(NEW, asked)
    assert (pushed.stored, pushed.differing) == ({"s0", "s3"}, {"s1", "s2"})
    found = dict(application.execute("SELECT id, vector_next::text FROM ships").fetchall())
    assert found == {"s0": "[0,1,2,3]", "s1": None, "s3": "[3,4,5,6]", "s4": None}


def test_a_row_that_others_hold_is_left_for_later(ships, url):
    """A push must neither wait for an application nor let it wait."""
    ships.prepare(NEW)
    with psycopg.connect(url) as holder:
        holder.execute("SELECT 1 FROM ships WHERE id = 's0' FOR UPDATE")
        pushed = ships.push(NEW, [outgoing("s0", "ship 0"), outgoing("s1", "ship 1")])
        assert (pushed.stored, pushed.differing) == ({"s1"}, set())
    assert ships.push(NEW, [outgoing("s0", "ship 0")]).stored == {"s0"}


def test_a_vector_that_is_there_is_not_written_again(ships, application):
    """A repeat after a crash must not make every row of a table anew."""
    ships.prepare(NEW)
    ships.push(NEW, [outgoing("s0", "ship 0", 5)])
    where = "SELECT xmin::text FROM ships WHERE id = 's0'"
    before = application.execute(where).fetchone()
    assert ships.push(NEW, [outgoing("s0", "ship 0", 5)]).stored == {"s0"}
    assert application.execute(where).fetchone() == before


def test_a_switch_puts_vectors_and_index_under_the_names_that_applications_know(ships, application):
    """Applications go on asking for the same column, and find it indexed; back likewise."""
    application.execute(
        "CREATE INDEX by_meaning ON ships USING hnsw (vector vector_cosine_ops) "
        "WITH (m = 8, ef_construction = 32) WHERE text <> ''"
    )
    before = indexes(application)
    ships.prepare(NEW)
    ships.push(NEW, [outgoing(f"s{number}", f"ship {number}", number) for number in range(5)])
    ships.finish(NEW, nothing)
    made = indexes(application)["by_meaning_next"]
    assert made == before["by_meaning"].replace("by_meaning", "by_meaning_next").replace(
        "(vector ", "(vector_next "
    )
    ships.switch(NEW)
    assert ships.active() == NEW.fingerprint
    assert columns(application) == {"id", "text", "vector", "vector_before"}
    assert indexes(application).keys() == {"by_meaning", "by_meaning_before"}
    plan = application.execute(
        "EXPLAIN (FORMAT JSON) SELECT id FROM ships WHERE text <> '' "
        "ORDER BY vector <=> '[1,2,3,4]' LIMIT 1"
    )
    application.execute("SET enable_seqscan = off")
    plan = application.execute(
        "EXPLAIN SELECT id FROM ships WHERE text <> '' ORDER BY vector <=> '[1,2,3,4]' LIMIT 1"
    ).fetchall()
    assert "by_meaning on" in plan[1][0]
    assert "was of" in ships.switch(NEW)  # again: nothing is left to do
    ships.switch(HOME)
    assert columns(application) == {"id", "text", "vector", "vector_next"}
    assert indexes(application)["by_meaning"] == before["by_meaning"]
    ships.switch(NEW)
    assert len(ships.drop_all_but({NEW.fingerprint})) == 1
    assert columns(application) == {"id", "text", "vector"}
    assert indexes(application).keys() == {"by_meaning"}


def test_changes_are_noted_of_the_column_that_others_write_after_a_switch(ships, application):
    """A trigger keeps to the column that it was made for, whatever that is called by now."""
    ships.prepare(NEW)
    ships.switch(NEW)
    application.execute("UPDATE ships SET vector = '[1,2,3,4]' WHERE id = 's1'")
    application.execute("UPDATE ships SET vector_before = NULL WHERE id = 's2'")
    assert ships.changes(10).ids == ["s1"]


def test_an_index_that_was_left_half_made_is_made_anew(ships, application):
    """A server that dies while it builds one leaves a name behind that no query uses."""
    application.execute("CREATE INDEX by_meaning ON ships USING hnsw (vector vector_l2_ops)")
    ships.prepare(NEW)
    application.execute(
        "CREATE INDEX by_meaning_next ON ships USING hnsw (vector_next vector_l2_ops)"
    )
    application.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_meaning_next'::regclass"
    )
    ships.finish(NEW, nothing)
    (is_valid,) = application.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_meaning_next'::regclass"
    ).fetchone()
    assert is_valid


def test_a_switch_waits_no_longer_than_seconds_for_others(ships, application, url):
    """While it waits for the table, every query of the application waits behind it."""
    ships.prepare(NEW)
    with psycopg.connect(url) as holder:
        holder.execute("SELECT 1 FROM ships")  # as any open transaction holds it
        with pytest.raises(OutsideUnavailableError, match="nothing was changed"):
            ships.switch(NEW)
        assert columns(application) == {"id", "text", "vector", "vector_next"}
    ships.switch(NEW)
    assert ships.active() == NEW.fingerprint


def test_a_server_that_restarts_is_found_again(ships, postgres: PostgresServer):
    """A connection that was lost is an error with when to try again; then there is another."""
    postgres.stop()
    with pytest.raises(OutsideUnavailableError) as refused:
        ships.active()
    assert refused.value.retry_after_s > 0
    with pytest.raises(OutsideUnavailableError, match="SHIPS_URL does not answer: connection ref"):
        ships.active()
    postgres.start()
    assert ships.active() == HOME.fingerprint


@pytest.mark.parametrize(
    "password",
    ["wrong-pass", "p@ss/word:9", "sec ret%", "%zz"],
    ids=["wrong", "signs", "space", "hex"],
)
def test_no_message_shows_a_part_of_the_password(linked, postgres: PostgresServer, password):
    """Errors go to clients and logs; libpq quotes what it cannot read."""
    table = linked(postgres.url(password=password))
    with pytest.raises((OutsideUnavailableError, OutsideMismatchError)) as refused:
        table.survey()
    seen = f"{refused.value} {refused.value.__cause__}"
    assert not any(part in seen for part in [PASSWORD, *password.replace("@", "/").split("/")])
    assert "SHIPS_URL" in seen


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("ALTER TABLE ships ALTER COLUMN vector SET NOT NULL", "DROP NOT NULL"),
        ("ALTER TABLE ships DROP CONSTRAINT ships_pkey", "no unique index"),
        (
            "ALTER TABLE ships DROP CONSTRAINT ships_pkey, ADD UNIQUE (id), "
            "ALTER COLUMN id DROP NOT NULL",
            "SET NOT NULL",
        ),
        ("ALTER TABLE ships ALTER COLUMN vector TYPE vector", "no number of values"),
        ("ALTER TABLE ships ADD COLUMN vector_next vector(4)", "a column vector_next already"),
        ("ALTER TABLE ships ALTER COLUMN vector TYPE vector(4) USING NULL", "of 4 values, not"),
        ("ALTER TABLE ships ALTER COLUMN text TYPE varchar[] USING NULL", "not text"),
        ("ALTER TABLE ships DROP COLUMN text", "no column 'text'"),
        ("ALTER TABLE ships ALTER COLUMN vector TYPE text", "of type text"),
        ("DROP TABLE ships", "no table public.ships"),
        ("COMMENT ON COLUMN ships.vector IS '[plimsoll: v1:x]'", "of 'v1:x'"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_linked_is_refused_with_what_to_do(
    application, linked, change, told
):
    """Before anything is written to it."""
    make_table(application)
    application.execute(change)
    table = linked()
    with pytest.raises(OutsideMismatchError, match=told.replace("(", r"\(")):
        table.follow(HOME)
    (n_triggers,) = application.execute("SELECT count(*) FROM pg_trigger").fetchone()
    assert n_triggers == 0


def test_a_user_who_does_not_own_the_table_is_told_so_before_it_is_written_to(
    application, linked, url
):
    """Only the owner adds and renames columns; applications seldom are the owner."""
    make_table(application)
    application.execute("DROP ROLE IF EXISTS sailor")
    application.execute("CREATE ROLE sailor LOGIN PASSWORD 'aye'")
    application.execute("GRANT SELECT, UPDATE ON ships TO sailor")
    table = linked(url.replace(f"captain:{PASSWORD}", "sailor:aye"))
    with pytest.raises(OutsideMismatchError, match="does not own the table"):
        table.follow(HOME)
    blocking = [found.message for found in table.survey().findings if found.blocks]
    assert len(blocking) == 2
    application.execute("DROP OWNED BY sailor")
    application.execute("DROP ROLE sailor")


def test_an_application_that_may_do_nothing_else_still_has_its_changes_noted(
    ships, application, url
):
    """The trigger runs for whoever writes: rights that it lacks would refuse the writing."""
    application.execute("DROP ROLE IF EXISTS mate")
    application.execute("CREATE ROLE mate LOGIN PASSWORD 'aye'")
    application.execute("GRANT SELECT, UPDATE ON ships TO mate")
    with psycopg.connect(url.replace(f"captain:{PASSWORD}", "mate:aye")) as mate:
        mate.execute("UPDATE ships SET text = 'theirs' WHERE id = 's0'")
    assert ships.changes(10).ids == ["s0"]
    application.execute("DROP OWNED BY mate")
    application.execute("DROP ROLE mate")


def test_a_survey_changes_nothing_and_says_what_is_there(application, linked):
    """Doctor is run on tables that matter."""
    make_table(application)
    application.execute("CREATE VIEW seen AS SELECT vector FROM ships")
    before = columns(application)
    survey = linked().survey()
    assert (survey.n_rows, survey.dimensions, survey.active) == (5, 3, None)
    assert [found.blocks for found in survey.findings] == [False, False]
    assert "view seen" in survey.findings[0].message
    assert columns(application) == before
    assert application.execute("SELECT count(*) FROM pg_trigger").fetchone() == (0,)


def test_a_view_that_keeps_an_old_column_is_told_with_what_to_do(ships, application):
    """A purge is over by then: the link alone can say why the column is still there."""
    application.execute("CREATE VIEW seen AS SELECT vector FROM ships")
    ships.prepare(NEW)
    ships.switch(NEW)
    with pytest.raises(OutsideMismatchError, match=r"vector_before stays .*view seen .*make that"):
        ships.drop_all_but({NEW.fingerprint})
    application.execute("DROP VIEW seen")
    assert len(ships.drop_all_but({NEW.fingerprint})) == 1


def test_unfollowing_leaves_nothing_behind_but_the_note(ships, application):
    """What Plimsoll put into a schema goes again."""
    ships.unfollow()
    ships.unfollow()
    left = application.execute(
        "SELECT relname FROM pg_class WHERE relname LIKE 'plimsoll%' UNION "
        "SELECT proname FROM pg_proc WHERE proname LIKE 'plimsoll%' UNION "
        "SELECT tgname FROM pg_trigger"
    )
    assert left.fetchall() == []
    assert ships.active() == HOME.fingerprint
    assert ships.survey().n_changes == 0


def test_a_comment_of_the_operator_is_kept_beside_the_note(application, linked):
    """The note is an addition."""
    make_table(application)
    application.execute("COMMENT ON COLUMN ships.vector IS 'by ada, 2023'")
    linked().follow(HOME)
    told = application.execute("SELECT col_description('ships'::regclass, 3)").fetchone()
    assert told == ("by ada, 2023 [plimsoll: foreign:ada]",)


def test_more_values_than_an_index_takes_are_refused_at_once(ships, application):
    """Not after hours of embedding, when the index is to be built."""
    application.execute("CREATE INDEX ON ships USING hnsw (vector vector_l2_ops)")
    with pytest.raises(OutsideMismatchError, match="indexes up to 2000 values"):
        ships.prepare(Space("v1:wide", 2001, "wide"))


def test_vectors_come_and_go_bit_by_bit(ships, application):
    """A mirror that rounds would call every vector changed."""
    values = np.array([0.1, -1e-20, 3.4e38, 1 / 3], np.float32)
    ships.prepare(NEW)
    ships.push(NEW, [outgoing("s0", "ship 0")])
    ships.switch(NEW)
    application.execute("UPDATE ships SET vector = %s WHERE id = 's0'", (str(values.tolist()),))
    (row,) = ships.rows(["s0"]).rows
    assert row.vector.dtype == np.float32
    assert (row.vector == values).all()
    assert not (row.vector == vector_of(0)).all()


def test_what_takes_long_is_cut_off_for_a_server_that_ends(ships, application, url):
    """An index over millions of rows takes an hour, which no shutdown and no pause waits for."""
    application.execute("CREATE INDEX by_meaning ON ships USING hnsw (vector vector_l2_ops)")
    ships.prepare(NEW)
    with psycopg.connect(url) as holder, ThreadPoolExecutor(1) as thread:
        holder.execute("UPDATE ships SET text = 'held' WHERE id = 's0'")  # which the index awaits
        building = thread.submit(ships.finish, NEW, nothing)
        deadline = monotonic() + DEADLINE_S
        while not application.execute(
            "SELECT 1 FROM pg_stat_activity "
            "WHERE query LIKE 'CREATE INDEX CONC%' AND wait_event_type = 'Lock'"
        ).fetchall():
            assert monotonic() < deadline, "no index is built"
            sleep(0.01)
        ships.interrupt()
        with pytest.raises(OutsideUnavailableError, match="user request"):
            building.result(DEADLINE_S)
    ships.finish(NEW, nothing)
    assert "by_meaning_next" in indexes(application)
