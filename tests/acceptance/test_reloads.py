"""Models that open and close again and again: what each time left behind would add up."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from plimsoll.bench.comparison.processes import process_memory
from tests.fakes import metric
from tests.gguf_weights import write_in_q8
from tests.running_server import DEADLINE_S, RunningServer

pytestmark = pytest.mark.acceptance

N_LOADS = 100
# Of the last half of them: sidecars that wait for the garbage collector took 14 MiB, and now 1.
MOST_GROWN_BYTES = 8 << 20
MODELS = ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2.Q8_0")


def test_a_hundred_loads_and_unloads_leave_nothing_behind(
    model_cache: Path, builtin_file: Path, tmp_path: Path
):
    """Two models take turns where one may be open: each question closes one and opens the other."""
    other = write_in_q8(builtin_file, tmp_path / f"{MODELS[1]}.gguf")
    settings = {"PLIMSOLL_EXTRA_MODELS": str(other), "PLIMSOLL_MAX_OPEN_MODELS": "1"}
    anonymous = []
    with (
        RunningServer(tmp_path, "--cache-dir", str(model_cache), **settings) as server,
        httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client,
    ):
        for number in range(N_LOADS):
            body = {"input": ["hello world"], "model": MODELS[number % 2]}
            answer = client.post("/embed", json=body).json()
            assert answer["kind"] == "dense", answer
            anonymous.append(process_memory(server.process.pid).anonymous_bytes)
        page = client.get("/metrics").text
    last_half = np.arange(N_LOADS // 2, N_LOADS)
    slope = np.polyfit(last_half, np.array(anonymous, float)[last_half], 1)[0]
    figures = {"bytes_a_load": slope, "anonymous_mib": [n >> 20 for n in anonymous]}
    (tmp_path / "reloads.txt").write_text(f"{figures}\n")
    loads = [f'plimsoll_model_loads_total{{model="{name}",outcome="ok"}}' for name in MODELS]
    assert sum(metric(page, series) for series in loads) == N_LOADS
    assert slope * len(last_half) < MOST_GROWN_BYTES, figures
