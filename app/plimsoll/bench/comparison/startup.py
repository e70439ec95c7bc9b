"""From starting a process to its first vector: engine, naive path, whole server."""

import http.client
import json
import socket
import subprocess
import tempfile
from collections.abc import Callable
from time import perf_counter, sleep

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import MeasurementError, running, server_command
from plimsoll.bench.comparison.report import Floor
from plimsoll.bench.comparison.run import Run

FLOOR_S = 1.5
# Sixteen tokens with [CLS] and [SEP], in BERT's vocabulary and in the synthetic one.
TEXT = "the of and in to was he is as for on with that it"
N_TOKENS = 16
SERVER_TIMEOUT_S = 60.0
POLL_S = 0.005


def measure(run: Run, case: ModelCase) -> None:
    """Fresh processes in turn; the first of each kind only warms the file cache."""
    seconds: dict[str, list[float]] = {"engine": [], "naive": [], "server": []}
    starts: dict[str, Callable[[], float]] = {
        "engine": lambda: _first_vector(case, "engine"),
        "naive": lambda: _first_vector(case, "naive"),
        "server": lambda: _first_reply(case),
    }
    for round_ in range(run.sizes.rounds + 1):
        run.say(f"start-up: round {round_} of {run.sizes.rounds}")
        for kind, start in starts.items():
            taken = start()
            if round_:
                seconds[kind].append(taken)
    peer = {"peer": "naive, first vector", "peer_values": seconds["naive"]}
    floor = Floor("value", at_most=FLOOR_S) if case.full_size else None
    for name, kind in (("first vector, engine", "engine"), ("first reply, server", "server")):
        run.add(case, "start", name, "s", seconds[kind], lower_is_better=True, floor=floor, **peer)


def _first_vector(case: ModelCase, kind: str) -> float:
    """Seconds from starting a process to the vector of a text of N_TOKENS."""
    start = perf_counter()
    with running(case.spec("engine" if kind == "engine" else "naive")) as worker:
        worker.ask(lengths=[N_TOKENS], repeats=1)
        return perf_counter() - start


def _first_reply(case: ModelCase) -> float:
    """Seconds from starting the server to its first reply. Raises MeasurementError."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    settings = {"model": case.model, "cache_dir": str(case.cache_dir), "port": str(port)}
    command, variables = server_command(settings | {"log_level": "error"})
    # In a folder of its own, where no .env or plimsoll.toml is read.
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        process = subprocess.Popen(
            command, env=variables, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            while not _replies(port):
                if process.poll() is not None:
                    assert process.stderr is not None
                    lines = process.stderr.read().decode(errors="replace").splitlines()
                    raise MeasurementError(f"the server ended: {' / '.join(lines[-1:])}")
                if perf_counter() - start > SERVER_TIMEOUT_S:
                    raise MeasurementError(f"no reply from the server in {SERVER_TIMEOUT_S:.0f} s")
                sleep(POLL_S)
            return perf_counter() - start
        finally:
            process.terminate()
            process.communicate()


def _replies(port: int) -> bool:
    """Whether the server answers with a vector; False while it does not listen."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SERVER_TIMEOUT_S)
    try:
        body = json.dumps({"input": TEXT})
        connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        return reply.status == 200
    except ConnectionError:
        return False
    finally:
        connection.close()
