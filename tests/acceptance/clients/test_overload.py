"""Many callers at once, with the retries that their libraries have by default, and a query."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.clients.callers import KINDS
from tests.acceptance.clients.examples import run_callers
from tests.running_server import DEADLINE_S, RunningServer

pytestmark = pytest.mark.acceptance

N_CALLERS = 64
N_TEXTS = 50
QUEUE_S = 5
OVERLOAD = 5.0  # times what the queue holds
MOST_REFUSED = 3


@pytest.fixture(scope="module")
def server(
    is_soak: bool, model_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """With a queue that five times as much work passes through within a minute."""
    if not is_soak:
        pytest.skip("takes minutes, and the machine for itself; --soak tries it")
    folder = tmp_path_factory.mktemp("overload")
    with RunningServer(
        folder, "--cache-dir", str(model_cache), PLIMSOLL_QUEUE_S=str(QUEUE_S)
    ) as server:
        yield server


def texts_for(server: RunningServer) -> list[str]:
    """A caller's list, so long that all of them are five times what the queue holds now."""
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
        for number in range(12):  # so that the server knows how fast it is
            client.post("/embed", json={"input": [f"{number} " + "ship " * 60] * 100})
        queue = client.get("/health").json()["queue"]
    n_tokens = OVERLOAD * queue["limit_tokens"] / (N_CALLERS * N_TEXTS)
    n_words = max(1, round(n_tokens) - 4)  # beside [CLS], [SEP] and two numbers
    return [f"{number} " + "ship " * n_words for number in range(N_TEXTS)]


@pytest.mark.parametrize("kind", KINDS)
def test_callers_outlive_an_overload(kind: str, server: RunningServer):
    """A Retry-After that is too short loses them: they try two or three times and give up."""
    found = run_callers(kind, server.url, texts_for(server), N_CALLERS)

    assert found["ends"].get("answered", 0) >= N_CALLERS - MOST_REFUSED, found["ends"]
    assert max(found["queries_s"]) < 1
