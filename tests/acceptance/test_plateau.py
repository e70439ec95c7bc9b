"""Without any limit memory must still come to rest: what creeps kills after weeks."""

import threading
from pathlib import Path

import numpy as np
import pytest

from plimsoll.bench.comparison.processes import process_memory
from plimsoll.bench.load.plan import LoadPlan
from tests.acceptance.conftest import Lengths
from tests.acceptance.limited_load import N_CLIENTS, POLL_S, run
from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

# What adds up does so by requests, so most of them are quickly done.
MIX = {"short": 85.0, "long": 3.0, "list": 1.5, "list500": 0.1, "hangup": 3.0, "malformed": 7.0}
# The allocator's arenas grow and shrink by steps, 10 to 40 MiB within minutes, that are no leak:
# one of them amid the samples looks like this slope. More requests tell smaller leaks from it.
STEP_BYTES = 40 << 20
SLOPE_OF_A_STEP = 1.5


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


def test_resident_memory_reaches_a_plateau(model_cache: Path, lengths: Lengths, tmp_path: Path):
    """Over the last half of thousands of mixed requests it grows by no more than wandering does."""
    n_requests = lengths.n_requests
    with RunningServer(tmp_path, "--cache-dir", str(model_cache), "--log-format", "text") as server:
        watch = GrowthWatch(server)
        report = run(LoadPlan(server.url, mix=MIX, n_clients=N_CLIENTS, n_requests=n_requests))
        watch.stop()
    ended, resident = np.array(watch.samples, float).T
    last_half = ended >= ended[-1] / 2
    slope = np.polyfit(ended[last_half], resident[last_half], 1)[0]
    most = SLOPE_OF_A_STEP * STEP_BYTES / (n_requests / 2)
    figures = {"bytes_a_request": slope, "most": most, "resident_mib": resident[-1] / (1 << 20)}
    (tmp_path / "plateau.txt").write_text(f"{figures}\n")
    assert report.totals.sent == n_requests
    assert slope < most, figures
