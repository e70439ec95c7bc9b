"""Plimsoll's own server with its default settings: on all cores of the run, on one, in int8."""

import subprocess
import sys
from functools import partial

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import environment, on_processors
from plimsoll.bench.peers.peer import PeerUnavailableError, RunningPeer, Start
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.encoder.catalog import resolve
from plimsoll.machine.cpu import available_cores
from plimsoll.settings_sources import load_settings

PLIMSOLL = (sys.executable, "-m", "plimsoll")


def ready(case: ModelCase, n_threads: int, **more: str) -> Start:
    """`plimsoll serve`; more: further settings."""
    variables = _variables(case, PLIMSOLL_THREADS=str(n_threads), **more)
    return partial(ServerPeer, [*PLIMSOLL, "serve"], variables, resolve(case.model).name)


def ready_in_int8(case: ModelCase, n_threads: int) -> Start:
    """With int8 codes, which are made first. PLIMSOLL_MIN_COSINE of this process is their gate."""
    options = {
        "PLIMSOLL_COMPUTE": "int8",
        "PLIMSOLL_MIN_COSINE": str(load_settings().settings.min_cosine),
    }
    pull = [*PLIMSOLL, "pull", case.model]
    done = subprocess.run(
        pull, env=_variables(case, **options), capture_output=True, text=True, check=False
    )
    if done.returncode:
        _, _, reason = done.stderr.strip().rpartition("\n")
        raise PeerUnavailableError(reason or f"`plimsoll pull` ended with {done.returncode}")
    return ready(case, n_threads, **options)


def ready_on_one_core(case: ModelCase, n_threads: int) -> Start:
    """One thread on the first core of the run, which is what scaling is measured by."""
    if available_cores() < 2:
        raise PeerUnavailableError("the run has one core, so that there is nothing to compare")
    start = ready(case, 1)

    def start_there() -> RunningPeer:
        with on_processors(1):
            return start()

    return start_there


def _variables(case: ModelCase, **more: str) -> dict[str, str]:
    return environment(
        PLIMSOLL_MODEL=case.model,
        PLIMSOLL_CACHE_DIR=str(case.cache_dir),
        PLIMSOLL_LOG_LEVEL="error",
        **more,
    )
