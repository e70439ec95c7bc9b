"""Vectors of a foreign space that are of an earlier text: they never count as the present one's."""

import asyncio

from pyarrow import parquet

from tests.links.files.ships import copy_of, make_ships, pulled
from tests.links.files.ships import linked as linked_files
from tests.links.files.ships import write as write_file
from tests.links.linked import (
    begin_pull,
    in_step,
    linked,
    migrate,
    old_vector,
    pull,
    vectors_of,
    write,
)
from tests.links.linked import make_ships as make_table


def test_of_changes_between_two_looks_the_last_says_whose_text_a_vector_is(folder, application):
    """Only what noted them can tell: both times text and vector are others than they were."""
    make_table(application, 10)

    def change_text(number: int, text: str) -> None:
        application.execute("UPDATE ships SET text = %s WHERE id = %s", (text, number))

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            async with server.links._homes["ships"].work.lock:  # no look in between
                write(application, 1, "its vector came along", old_vector(91))
                change_text(1, "and then the text changed alone")
                change_text(2, "changed alone")
                write(application, 2, "and then with its vector", old_vector(92))
                change_text(3, "changed, and its vector comes later")
                application.execute(
                    "UPDATE ships SET vector = %s WHERE id = 3", (str(old_vector(93).tolist()),)
                )
                application.execute("DELETE FROM ships WHERE id = 4")
                write(application, 4, "anew", old_vector(94))
                write(application, 17, "it is new", old_vector(97))
                change_text(17, "and then the text changed alone")
                write(application, 18, "it is new", old_vector(98))
                write(application, 9, "", old_vector(9))
                write(application, 9, "for which it is the same vector", None)
                write(application, 9, "for which it is the same vector", old_vector(9))
            await in_step(server)
            found = vectors_of(server)
            assert found["1"] is None
            assert found["2"] == old_vector(92).tobytes()
            assert found["3"] == old_vector(93).tobytes()
            assert found["4"] == old_vector(94).tobytes()
            assert found["5"] == old_vector(5).tobytes()
            assert found["17"] is None
            assert found["18"] == old_vector(98).tobytes()
            assert found["9"] == old_vector(9).tobytes()

    asyncio.run(play())


def test_a_vector_stays_stale_through_further_looks_pulls_and_a_way_back(folder, application):
    """Each of them finds text and vector as they were, and no change that was noted."""
    make_table(application, 40)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            application.execute("UPDATE ships SET text = 'once' WHERE id = 1")
            await in_step(server)
            application.execute("UPDATE ships SET text = 'twice' WHERE id = 1")
            await in_step(server)
            assert vectors_of(server)["1"] is None
            await pull(server)
            assert vectors_of(server)["1"] is None

            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            application.execute("UPDATE ships SET text = 'after the cut-over' WHERE id = 2")
            await in_step(server)
            await server.migrations.roll_back(number, "test", "")
            await pull(server)
            found = vectors_of(server)
            assert (found["1"], found["2"]) == (None, None)
            assert found["3"] == old_vector(3).tobytes()

            write(application, 1, "twice", old_vector(99))
            await in_step(server)
            assert vectors_of(server)["1"] == old_vector(99).tobytes()

    asyncio.run(play())


def test_a_vector_whose_own_text_comes_back_is_taken_again(folder, application):
    """However many others there were in between, and whatever was read outside meanwhile."""
    make_table(application, 40)

    def change_text(number: int, text: str) -> None:
        application.execute("UPDATE ships SET text = %s WHERE id = %s", (text, number))

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            own = {
                number: application.execute(
                    "SELECT text FROM ships WHERE id = %s", (number,)
                ).fetchone()[0]
                for number in (1, 2, 3)
            }
            for text in ("another", "a third"):
                change_text(1, text)
                await in_step(server)
            await pull(server)
            assert vectors_of(server)["1"] is None
            change_text(1, own[1])
            await in_step(server)
            assert vectors_of(server)["1"] == old_vector(1).tobytes()

            write(application, 2, "with a vector of its own", old_vector(92))
            await in_step(server)
            change_text(2, own[2])  # the vector stays that of the other text
            await in_step(server)
            assert vectors_of(server)["2"] is None

            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            change_text(3, "after the cut-over")
            await in_step(server)
            change_text(3, own[3])
            await in_step(server)
            await server.migrations.roll_back(number, "test", "")
            await pull(server)
            assert vectors_of(server)["3"] == old_vector(3).tobytes()

    asyncio.run(play())


def test_a_change_of_one_file_makes_no_vector_of_another_a_present_one(tmp_path):
    """Files are all read once more, and say of no row that it has changed."""
    made = tmp_path / "made"
    made.mkdir()
    asyncio.run(make_ships(made, 6))
    path = copy_of(made, tmp_path / "linked") / "source" / "part-0.parquet"
    rows = parquet.read_table(path).to_pylist()
    toml = path.parent.parent / "links.toml"
    lines = toml.read_text().partition("model =")[0]
    toml.write_text(f'{lines}space = "ada"\ndimensions = {len(rows[0]["embedding"])}\n')

    async def play() -> None:
        async with linked_files(tmp_path / "linked") as server:
            await pulled(server)
            before = vectors_of(server)
            assert None not in before.values()
            own = rows[0]["text"]
            rows[0]["text"] = "changed, and its vector is not"
            for _ in range(2):
                write_file(path, rows)
                await begin_pull(server)
                await pulled(server)
                assert vectors_of(server) == {**before, "d0": None}
            rows[0]["text"] = own
            write_file(path, rows)
            await begin_pull(server)
            await pulled(server)
            assert vectors_of(server) == before

    asyncio.run(play())
