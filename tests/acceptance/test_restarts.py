"""Servers that end and start again under load: nothing accepted is lost, nothing is left behind.

30 restarts, 1,000 with --soak; each fourth server is killed, the others are asked to end.
"""

import hashlib
import json
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from plimsoll import files
from plimsoll.server.folders import MARK_NAME
from plimsoll.sidecar.cache import list_sidecars, verify
from tests.acceptance.containers import free_port
from tests.acceptance.limited_load import ServedFile
from tests.running_server import DEADLINE_S, RunningServer

pytestmark = pytest.mark.acceptance

N_CLIENTS = 4  # of each server
N_PORTS = 2
KILL_EVERY = 4
WARM_START_S = 2.0
BODY = {"input": ["a ship on the sea"]}
NOT_ACCEPTED = "not accepted"


class Load:
    """Clients that ask all the time, each over connections of its own. Owns their threads."""

    def __init__(self, port: int) -> None:
        self.ends: Counter[str] = Counter()
        self.vectors: set[bytes] = set()
        self._url = f"http://127.0.0.1:{port}/embed"
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(N_CLIENTS)]
        for thread in self._threads:
            thread.start()

    @property
    def n_answered(self) -> int:
        """Requests that were answered with vectors."""
        return self.ends["200"]

    def wait_for(self, number: int) -> None:
        """Wait until so many more requests have been answered."""
        wanted, deadline_s = self.n_answered + number, monotonic() + DEADLINE_S
        while self.n_answered < wanted:
            assert monotonic() < deadline_s, self.ends
            sleep(0.005)

    def stop(self) -> Counter[str]:
        """How all requests have ended."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        return self.ends

    def _ask(self) -> None:
        with httpx.Client(timeout=DEADLINE_S, trust_env=False) as client:
            while not self._stopped.is_set():
                try:
                    answer = client.post(self._url, json=BODY)
                    end = str(answer.status_code)
                    if end == "200":
                        vectors = json.dumps(answer.json()["embeddings"]).encode()
                        self.vectors.add(hashlib.sha256(vectors).digest())
                except httpx.ConnectError:
                    end = NOT_ACCEPTED
                    sleep(0.01)
                except httpx.HTTPError as error:
                    end = type(error).__name__
                self.ends[end] += 1


@contextmanager
def load_on(port: int) -> Iterator[Load]:
    """Clients for the length of a block."""
    load = Load(port)
    try:
        yield load
    finally:
        load.stop()


@pytest.fixture
def cache(builtin: ServedFile, tmp_path: Path) -> Path:
    """A cache folder of its own, with the built-in model converted, and that alone."""
    copied = tmp_path / "cache"
    for folder in (builtin.cache / files.BUILT_FOLDER, builtin.sidecar):
        if folder.is_dir():
            shutil.copytree(folder, copied / folder.relative_to(builtin.cache))
    copied.chmod(0o700)
    return copied


def served(folder: Path, cache: Path, port: int) -> RunningServer:
    """A server that has its model open."""
    return RunningServer(
        folder, "--cache-dir", str(cache), "--port", str(port), "--preload", "--drain-s", "60"
    )


def contents(cache: Path) -> dict[str, int]:
    """Every file of the cache folder and its size."""
    found = (path for path in cache.rglob("*") if path.is_file())
    return {str(path.relative_to(cache)): path.stat().st_size for path in found}


def check_whole(cache: Path) -> None:
    """Compare every byte of the weights with its checksums."""
    entries = list_sidecars(cache)
    assert entries
    for entry in entries:
        assert entry.fault is None
        assert verify(entry) == []


@dataclass(frozen=True)
class Restarts:
    """What was seen of servers that followed each other on one port.

    lost: how requests ended from a server's order to end until it had.
    """

    ends: Counter[str]
    lost: Counter[str]
    codes: Counter[int]
    vectors: set[bytes]
    log: str


def restart(folder: Path, cache: Path, number: int) -> Restarts:
    """Start and end so many servers one after another, under load all the time."""
    folder.mkdir()
    port, codes, logs = free_port(), Counter[int](), []
    lost = Counter[str]()
    with load_on(port) as load:
        for place in range(number):
            is_killed = place % KILL_EVERY == KILL_EVERY - 1
            with served(folder, cache, port) as server:
                load.wait_for(10)
                ends = load.ends.copy()
                if is_killed:
                    server.process.kill()
                else:
                    server.terminate()
                codes[server.wait()] += 1
            logs.append(server.log)
            if is_killed:
                sleep(0.05)  # what was under way has ended by then
            else:
                lost.update(load.ends - ends)
    with socket.create_server(("127.0.0.1", port)):
        pass  # nothing holds the port
    return Restarts(load.ends, lost, codes, load.vectors, "".join(logs))


def test_restarts_under_load_lose_no_accepted_request_and_leave_nothing_behind(
    cache: Path, tmp_path: Path, is_soak: bool
):
    """What a client was let in for is answered; only a kill loses what was under way.

    Two servers at a time share the cache folder.
    """
    with served(tmp_path, cache, free_port()) as server:
        server.terminate()
        server.wait()
    before = contents(cache)
    each = (1000 if is_soak else 30) // N_PORTS
    with ThreadPoolExecutor(N_PORTS) as pool:
        folders = [tmp_path / f"server-{number}" for number in range(N_PORTS)]
        found = list(pool.map(lambda folder: restart(folder, cache, each), folders))
    after = contents(cache)
    figures = [{"ends": dict(one.ends), "codes": dict(one.codes)} for one in found]
    (tmp_path / "restarts.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures))

    for one in found:
        assert set(one.lost) <= {"200", NOT_ACCEPTED}, figures
        assert one.lost["200"], figures
        assert set(one.codes) == {0, -9}, figures
        assert "Traceback" not in one.log
    assert len(set.union(*(one.vectors for one in found))) == 1, "a text had different vectors"
    # The mark of a server that was killed last may lie there; it is not locked.
    assert set(after) - set(before) <= {MARK_NAME}
    assert not set(before) - set(after)
    check_whole(cache)


def test_a_killed_server_serves_again_from_its_warm_sidecar(
    cache: Path, tmp_path: Path, is_soak: bool
):
    """Within two seconds on a quiet machine, from the same files."""
    port, taken_s = free_port(), []
    with served(tmp_path, cache, port) as server, load_on(port) as load:
        load.wait_for(5)
        server.process.kill()
        server.wait()
    before = contents(cache)  # with the mark of the server that was killed
    for _ in range(5 if is_soak else 2):
        start_s = monotonic()
        with served(tmp_path, cache, port) as server:
            answer = httpx.post(f"{server.url}/embed", json=BODY, timeout=DEADLINE_S)
            taken_s.append(round(monotonic() - start_s, 2))
            server.process.kill()
            server.wait()
        assert answer.json()["kind"] == "dense"
    (tmp_path / "killed.json").write_text(json.dumps({"seconds": taken_s}))
    print(json.dumps({"seconds": taken_s}))

    assert contents(cache).keys() == before.keys()
    check_whole(cache)
    if is_soak:
        assert max(taken_s) < WARM_START_S, taken_s
