"""A collection whose home is files: moved, kept in step with them, and moved back."""

import asyncio
from pathlib import Path
from time import monotonic

import pytest
from pyarrow import parquet

from plimsoll.links import steps
from plimsoll.links.files.manifest import POINTER
from plimsoll.links.files.paths import files_of
from plimsoll.links.files.reading import read_rows
from plimsoll.links.files.rows import Columns, FileRow
from plimsoll.links.work import LinkWork
from plimsoll.migration.states import MigrationState as State
from tests.links.files.ships import DEADLINE_S, copy_of, linked, make_ships, pulled, write
from tests.links.linked import embedded, shown, until
from tests.migration.models import CHECK_S, NEW, OLD, Inside

N = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(make_ships(tmp_path_factory.mktemp("made"), N))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return copy_of(made, tmp_path)


def read(folder: Path) -> dict[str, FileRow]:
    """What others read there."""
    rows = list(read_rows(files_of(str(folder)), Columns(vector="embedding")))
    return {row.id: row for row in rows if isinstance(row, FileRow)}


async def are_of(server: Inside, model: str, rows: dict[str, FileRow]) -> None:
    """Each vector is what a model makes of its text, to the last bit."""
    expected = await embedded(server, [row.document.text for row in rows.values()], model)
    found = [None if row.vector is None else tuple(row.vector.tolist()) for row in rows.values()]
    assert found == expected


def test_others_read_what_searches_read_and_what_comes_into_the_files(folder: Path):
    """There and back, and a file that was added, changed and taken away meanwhile."""
    source, moved = folder / "source", folder / "moved"

    async def play() -> None:
        async with linked(folder) as server:
            status = await pulled(server)
            assert status.n_documents == N
            assert set(status.n_waiting.values()) == {0}
            number = await server.begin("ships", NEW)
            ready = await server.until_rest(number)
            assert ready.state is State.READY
            assert not (moved / POINTER).exists()

            await server.migrations.cut_over(number, "test", "")
            assert list(read(moved)) == [f"d{k}" for k in range(N)]
            await are_of(server, NEW, read(moved))
            assert POINTER in (await server.migrations.status(number)).counts.changes[-1].why

            first = parquet.read_table(source / "part-0.parquet").to_pylist()
            first[0]["text"] = "a text that was changed"
            first[0]["embedding"] = None
            write(source / "part-0.parquet", first)
            write(source / "part-2.parquet", [{**first[1], "id": "new", "text": "it is new"}])
            (source / "part-1.parquet").unlink()
            await until(lambda: len(read(moved)) == N // 3 + 1, "the rows stay")
            await until(
                lambda: all(row.vector is not None for row in read(moved).values()), "no vectors"
            )
            assert read(moved)["d0"].document.text == "a text that was changed"
            await are_of(server, NEW, read(moved))
            assert (await server.corpora.catalog.state("ships")).n_documents == N // 3 + 1

            await server.migrations.roll_back(number, "test", "")
            assert not (moved / POINTER).exists()
            await are_of(server, OLD, {row.id: row for row in list(read(source).values())[1:20]})
            await server.migrations.cut_over(number, "test", "", force=True)
            await are_of(server, NEW, read(moved))

    asyncio.run(play())


def test_files_are_looked_at_less_often_where_nothing_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each look asks for every file, of which there may be thousands, for weeks."""
    waits = list[float]()

    async def wait(self: LinkWork, seconds: float) -> bool:
        waits.append(seconds)
        await asyncio.sleep(CHECK_S)
        return False

    monkeypatch.setattr(LinkWork, "_is_woken_within", wait)

    async def play() -> None:
        async with linked(folder) as server:
            await pulled(server)
            await until(lambda: waits[-6:] == [1, 2, 4, 8, 10, 10], "it looks as often")
            path = folder / "source" / "part-1.parquet"
            write(path, parquet.read_table(path).to_pylist())  # at another time
            await until(lambda: waits[-1] < 10, "it looks no more often")
            await until(lambda: waits[-6:] == [1, 2, 4, 8, 10, 10], "it looks as often")

    asyncio.run(play())


def test_files_that_cannot_be_read_are_waited_for_and_say_why(folder: Path):
    """An operator finds the reason in the link's status; what was there stays."""
    file = folder / "source" / "part-1.parquet"
    whole = file.read_bytes()

    async def play() -> None:
        async with linked(folder) as server:
            await pulled(server)
            file.write_bytes(whole[:-100])
            waits = None
            deadline = monotonic() + DEADLINE_S
            while waits is None:
                assert monotonic() < deadline
                await asyncio.sleep(CHECK_S)
                waits = (await server.links.status("ships")).waits
            assert "part-1.parquet" in waits
            assert "cannot be read as Parquet" in waits
            assert (await server.corpora.catalog.state("ships")).n_documents == N

    asyncio.run(play())


def test_metrics_say_where_a_link_stands(folder: Path):
    """An operator is called where it waits for long, and sees since when nothing came in."""
    source = folder / "source"

    async def play() -> None:
        async with linked(folder) as server:
            assert shown(server)['state state="at_rest"'] == 1
            await pulled(server)
            await until(lambda: shown(server)['state state="following"'] == 1, "not followed")
            assert shown(server)["last_change_timestamp_seconds"] > 0
            assert shown(server)["faults_total"] == 0

            async with server.links.held("ships") as link:  # nothing is brought out meanwhile
                assert link is not None
                work = server.links._homes["ships"].work
                await work.write(steps.put_all)
                await work._show()
                assert shown(server)['vectors_waiting space="read"'] == N
                assert shown(server)['vectors_waiting space="other"'] == 0
            await until(lambda: shown(server)['vectors_waiting space="read"'] == 0, "they stay")

            away = source.rename(folder / "away")
            await until(lambda: shown(server)['state state="waiting"'] == 1, "it does not wait")
            assert shown(server)["faults_total"] >= 1
            assert shown(server)['state state="following"'] == 0
            away.rename(source)
            server.links.wake("ships")
            await until(lambda: shown(server)['state state="waiting"'] == 0, "it waits on")
            await server.links.unlink("ships")
            await until(lambda: shown(server)['state state="at_rest"'] == 1, "it does not rest")

    asyncio.run(play())
