"""Plimsoll's own server with its default settings, on all cores of the run or on one."""

import sys
from functools import partial

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import environment, on_processors
from plimsoll.bench.peers.peer import PeerUnavailableError, RunningPeer, Start
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.encoder.catalog import resolve
from plimsoll.machine.cpu import available_cores


def ready(case: ModelCase, n_threads: int) -> Start:
    """`plimsoll serve`."""
    variables = environment(
        PLIMSOLL_MODEL=case.model,
        PLIMSOLL_CACHE_DIR=str(case.cache_dir),
        PLIMSOLL_THREADS=str(n_threads),
        PLIMSOLL_LOG_LEVEL="error",
    )
    command = [sys.executable, "-m", "plimsoll", "serve"]
    return partial(ServerPeer, command, variables, resolve(case.model).name)


def ready_on_one_core(case: ModelCase, n_threads: int) -> Start:
    """One thread on the first core of the run, which is what scaling is measured by."""
    if available_cores() < 2:
        raise PeerUnavailableError("the run has one core, so that there is nothing to compare")
    start = ready(case, 1)

    def start_there() -> RunningPeer:
        with on_processors(1):
            return start()

    return start_there
