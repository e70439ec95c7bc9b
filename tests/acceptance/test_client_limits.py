"""A client held to its rate beside one that is not, both with OpenAI's own library."""

import asyncio
from pathlib import Path
from time import perf_counter

import pytest
from openai import AsyncOpenAI

from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

HELD, FREE = "held-key-0123456789", "free-key-0123456789"
PER_S = 10
N_CALLERS = 60


async def call(client: AsyncOpenAI, text: str) -> float:
    """Seconds until a text has its vector, with the retries that the library makes by itself."""
    began_s = perf_counter()
    answer = await client.embeddings.create(model="all-MiniLM-L6-v2", input=text)
    assert len(answer.data[0].embedding) > 0
    return perf_counter() - began_s


def test_callers_that_are_refused_together_are_all_answered_by_their_own_retries(
    tmp_path: Path, model_cache: Path
):
    """The library comes back twice and then gives up. Told the same second, most would be lost. Of
    the other client, which has no retries, nothing is refused."""
    keys = tmp_path / "keys"
    keys.write_text(f"embed:{HELD} requests_per_s={PER_S}\nembed:{FREE}\n", encoding="utf-8")
    keys.chmod(0o600)
    variables = {"PLIMSOLL_API_KEYS": str(keys), "PLIMSOLL_CACHE_DIR": str(model_cache)}

    async def both(url: str) -> tuple[list[float], list[float], float]:
        async with (
            AsyncOpenAI(base_url=f"{url}/v1", api_key=HELD) as held,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=FREE, max_retries=0) as free,
        ):
            await call(free, "what a first request sets up")
            began_s = perf_counter()
            callers = [asyncio.create_task(call(held, f"ship {n}")) for n in range(N_CALLERS)]
            of_free = []
            while not all(caller.done() for caller in callers):
                of_free.append(await call(free, f"boat {len(of_free)}"))
                await asyncio.sleep(0.05)
            return await asyncio.gather(*callers), of_free, perf_counter() - began_s

    with RunningServer(tmp_path, "--preload", **variables) as server:
        of_held, of_free, took_s = asyncio.run(both(server.url))

    print(
        f"{len(of_held)} of {N_CALLERS} answered in {took_s:.1f} s; of {len(of_free)} calls of the "
        f"other client the slowest took {1000 * max(of_free):.0f} ms"
    )
    # But for a second's worth they come in at their rate, and no sooner.
    assert took_s > (N_CALLERS - PER_S) / PER_S - 0.01
    assert len(of_free) > 1
