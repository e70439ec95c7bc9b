"""An overload of five times what the queue holds, by OpenAI's own client with its two retries."""

from pathlib import Path

import httpx
import pytest

from plimsoll.policy.backlog import LEAST_QUEUE_TOKENS, RATE_TOKENS
from tests.acceptance.callers import N_TEXTS, Asking, Crowd, distinct_texts
from tests.acceptance.neighbours import needs_peace
from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

N_CALLERS, N_QUEUES = 64, 5
QUEUE_S = 2.0
# Of the built-in model: the number of a text takes one or two tokens, its ends two, each word one.
TOKENS_BESIDE_WORDS = 6
WARM_UP_CALLER = 10_000


def measured_rate(url: str) -> float:
    """Tokens a second by what the server itself has measured of its runs."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for number in range(12):
            texts = distinct_texts(WARM_UP_CALLER + number, 60)
            assert client.post("/embed", json={"input": texts}).status_code == 200
        told = client.post("/embed?explain=true", json={"input": "ship"}).json()
    assert 12 * N_TEXTS * 60 > RATE_TOKENS
    rate: float = told["tokens_per_s"]
    return rate


@needs_peace
def test_a_crowd_of_five_times_the_queue_is_answered_and_no_query_waits_for_it(
    model_cache: Path, tmp_path: Path
):
    """Unmodified clients give up after two retries, so each has to find room when it is told to."""
    options = ("--cache-dir", str(model_cache), "--log-format", "text")
    with RunningServer(tmp_path, *options, PLIMSOLL_QUEUE_S=str(QUEUE_S)) as server:
        queue_tokens = max(LEAST_QUEUE_TOKENS, measured_rate(server.url) * QUEUE_S)
        n_words = round(N_QUEUES * queue_tokens / N_CALLERS / N_TEXTS) - TOKENS_BESIDE_WORDS
        crowd = Crowd(server.url, N_CALLERS, n_words)
        with Asking(server.url) as asking:
            crowd.run()

    figures = {
        "answered": crowd.n_answered,
        "seconds": round(crowd.seconds, 1),
        "statuses": dict(crowd.statuses),
        "told_s": sorted(crowd.told_s),
        "queries": len(asking.seconds),
        "slowest_query_s": round(max(asking.seconds), 3),
    }
    (tmp_path / "crowd.txt").write_text(f"{figures}\n")
    assert crowd.n_answered >= 61, figures
    # It would show nothing if the queue had held them all.
    assert crowd.statuses[429] >= N_CALLERS // 2, figures
    assert asking.refused == []
    assert max(asking.seconds) < 1, figures
