"""Without any limit memory must still come to rest: what creeps kills after weeks."""

import threading
from pathlib import Path

import numpy as np
import pytest

from scripts.benchmarks.processes import process_memory
from scripts.load.plan import LoadPlan
from tests.acceptance.limited_load import N_CLIENTS, POLL_S, run
from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

N_REQUESTS = 10_000
MIX = {"short": 76.0, "long": 10.0, "list": 3.0, "list500": 0.1, "hangup": 4.0, "malformed": 7.0}
MOST_BYTES_A_THOUSAND = 1_000_000


class GrowthWatch:
    """Samples a server's resident memory beside how many requests it has ended."""

    def __init__(self, server: RunningServer) -> None:
        self.samples: list[tuple[int, int]] = []  # (requests ended, bytes)
        self._server = server
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Sample no more."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            memory = process_memory(self._server.process.pid)
            if memory is not None:
                ended = sum(" POST /embed " in line for line in self._server.lines[:])
                self.samples.append((ended, memory.resident_bytes))


def test_resident_memory_reaches_a_plateau(model_cache: Path, tmp_path: Path):
    """The slope of the last half of ten thousand mixed requests is next to nothing."""
    with RunningServer(tmp_path, "--cache-dir", str(model_cache), "--log-format", "text") as server:
        watch = GrowthWatch(server)
        report = run(LoadPlan(server.url, mix=MIX, n_clients=N_CLIENTS, n_requests=N_REQUESTS))
        watch.stop()
    ended, resident = np.array(watch.samples, float).T
    last_half = ended >= ended[-1] / 2
    slope = np.polyfit(ended[last_half], resident[last_half], 1)[0]
    figures = {"slope_bytes_a_request": slope, "resident_mib": resident[-1] / (1 << 20)}
    (tmp_path / "plateau.txt").write_text(f"{figures}\n")
    assert report.totals.sent == N_REQUESTS
    assert slope * 1000 < MOST_BYTES_A_THOUSAND, figures
