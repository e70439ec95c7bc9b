"""A disk that is full in the midst of a run: the run stops and says so, and loses nothing."""

import asyncio
from pathlib import Path

from plimsoll.corpora.records import Document
from plimsoll.migration.states import MigrationState as State
from tests.killing import stored
from tests.migration.models import NEW, OLD, Inside, inside, settings_of, texts
from tests.small_disk import filled, small_disk

# Vectors of all of them, written once to the log and once to the file, take several times the room
# that is left; a change of state takes a few pages.
N, LEFT_BYTES = 3000, 256 << 10


async def begun(server: Inside) -> int:
    """Ships, and a migration of them that is planned."""
    await server.ensure("ships", model=OLD)
    await server.put("ships", [Document(f"d{n}", text) for n, text in enumerate(texts(N))])
    return await server.begin("ships", NEW, starts=False)


async def to_its_end(server: Inside, number: int) -> None:
    """Let it run, again where it had stopped."""
    await server.migrations.resume(number, "test", "")
    status = await server.until_rest(number)
    assert status.state is State.READY, status.failure


def test_a_run_that_fills_the_disk_goes_on_from_there_once_there_is_room(
    folder: Path, tmp_path: Path
):
    """Searches are answered meanwhile, and what comes of it is what comes of an undisturbed run."""

    async def play(data: Path, *, is_full: bool) -> None:
        settings = settings_of(folder).model_copy(update={"data_dir": data / "data"})
        async with inside(settings) as server:
            number = await begun(server)
            if is_full:
                with filled(data, LEFT_BYTES):
                    await server.migrations.resume(number, "test", "")
                    status = await server.until_rest(number)
                    assert status.failure is not None
                    assert "full" in status.failure
                    assert (await server.search("ship load line")).mode == "dense"
                    n_embedded = status.counts.migration.checkpoint.n_embedded
                    assert n_embedded == status.counts.n_vectors < N
            await to_its_end(server, number)

    quiet = tmp_path / "quiet"
    quiet.mkdir()
    asyncio.run(play(quiet, is_full=False))
    with small_disk(tmp_path / "disk", "24m") as disk:
        asyncio.run(play(disk, is_full=True))
        assert stored(disk) == stored(quiet)
