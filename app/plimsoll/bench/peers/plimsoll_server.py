"""Plimsoll's own server with its default settings, on all cores or on some."""

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import server_command
from plimsoll.bench.peers.peer import RunningPeer
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.encoder.catalog import resolve


def start(case: ModelCase, n_threads: int, *, n_cores: int | None = None) -> RunningPeer:
    """`plimsoll serve`; n_cores: held to the first so many of the machine's."""
    settings = {
        "model": case.model,
        "cache_dir": str(case.cache_dir),
        "threads": str(n_threads),
        "log_level": "error",
    }
    command, variables = server_command(settings)
    held = [] if n_cores is None else ["taskset", "--cpu-list", f"0-{n_cores - 1}"]
    return ServerPeer(
        lambda port: [*held, *command, "--port", str(port)], variables, resolve(case.model).name
    )


def start_alone(case: ModelCase, n_threads: int) -> RunningPeer:
    """One thread on one core, which is what scaling is measured by."""
    return start(case, 1, n_cores=1)
