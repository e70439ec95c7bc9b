"""Vectors of a foreign space in Qdrant that are of an earlier text, which rounding may change."""

import asyncio

import numpy as np

from tests.links.linked import in_step, migrate, old_vector, pull, until, vectors_of
from tests.links.qdrant.ships import ALIAS, is_read, linked, make_ships, point, write_text

N = 60


def test_a_vector_stays_stale_where_a_way_back_rounds_it_anew(folder, application):
    """A rollback copies texts to the old vectors, and Qdrant may round those once more."""
    make_ships(application, N)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            changed = {str(each): f"changed after the cut-over {each}" for each in range(1, N)}
            for each, text in changed.items():
                write_text(application, int(each), text)
            await until(lambda: is_read(server, *changed.values()), "not read again")
            await in_step(server)
            await server.migrations.roll_back(number, "test", "")
            await pull(server)
            found = vectors_of(server)
            assert {each for each, vector in found.items() if vector is not None} == {"0"}

            application.upsert(ALIAS, [point(1, changed["1"], old_vector(99))])
            await pull(server)
            mine = np.frombuffer(vectors_of(server)["1"], np.float32)
            expected = old_vector(99) / np.linalg.norm(old_vector(99))
            np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6)

    asyncio.run(play())
