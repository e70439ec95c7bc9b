"""Three real servers behind HAProxy, under load: one is killed, one paused, all restarted in turn.

For half a minute; with --soak each part is long enough for thousands of requests.
"""

import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import httpx
import openai
import pytest

from plimsoll.composition.models import prepare_model
from plimsoll.settings import Settings
from tests.acceptance.balancer import Balancer, haproxy
from tests.acceptance.containers import free_port
from tests.acceptance.live_requests import Answer, LiveRequests, Request, p99_s, slowest_s
from tests.acceptance.prometheus import RunningPrometheus, prometheus_tools, until
from tests.running_server import DEADLINE_S, RunningServer

pytestmark = pytest.mark.acceptance

ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
OWNER = ADDRESSES[0]
DRAIN_DELAY_S = 3  # more than it takes HAProxy to leave a replica out
MOST_FAILED = 0.01
TEXTS = ["a ship on the sea", "how deep a hull may lie", "tea", "a line " * 40]
REQUESTS: list[Request] = [
    ("/embed", {"input": TEXTS}),
    ("/v1/embeddings", {"input": TEXTS[0], "model": "builtin"}),
    ("/api/embed", {"input": TEXTS[1], "model": "builtin"}),
    ("/tei/embed", {"inputs": TEXTS[2]}),
]


class Replica:
    """A server on one address, which may be started again there. Owns it and its folder."""

    def __init__(self, folder: Path, cache: Path, address: str, port: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._options = (
            *("--host", address, "--port", str(port), "--cache-dir", str(cache), "--preload"),
            *("--threads", "1", "--drain-delay-s", str(DRAIN_DELAY_S)),
        )
        self._variables = {"PLIMSOLL_METRICS_OPEN": "true"}
        self.server = self._start()

    def kill(self) -> None:
        """End it at once."""
        self.server.process.kill()
        assert self.server.wait() == -signal.SIGKILL

    def end(self) -> None:
        """Ask it to end, and wait until it has."""
        self.server.terminate()
        assert self.server.wait() == 0, self.server.log

    def start_again(self) -> None:
        """In the place of the one that has ended."""
        self.server.__exit__(None, None, None)
        self.server = self._start()

    def _start(self) -> RunningServer:
        return RunningServer(self._folder, *self._options, **self._variables)

    def close(self) -> None:
        """End it, however it stands."""
        self.server.process.kill()  # which ends one that stands still too
        self.server.__exit__(None, None, None)


class OpenAICallers(LiveRequests):
    """Clients of OpenAI's library, each with its connections, which retry nothing themselves."""

    def _send(self) -> None:
        with openai.OpenAI(
            base_url=f"{self._url}/v1", api_key="none", timeout=DEADLINE_S, max_retries=0
        ) as client:
            while not self._ended.wait(self._pause_s):
                request = self._requests[0]
                began_s = monotonic()
                status, reply = 200, {}
                try:
                    client.embeddings.create(input=TEXTS, model="builtin")
                except openai.APIStatusError as error:
                    status, reply = error.status_code, {"error": error.message}
                except openai.OpenAIError as error:
                    status, reply = 0, {"error": repr(error)}
                seconds = monotonic() - began_s
                self.answers.append(Answer(request, began_s, seconds, status, reply))


@dataclass(frozen=True)
class Place:
    """What stands, and who asks."""

    replicas: Sequence[Replica]
    balancer: Balancer
    clients: Sequence[LiveRequests]

    def answers(self, begin_s: float, end_s: float) -> list[Answer]:
        """Of all clients, to what was under way between two moments."""
        return [answer for one in self.clients for answer in one.between(begin_s, end_s)]


@pytest.fixture(scope="module")
def tools() -> Path:
    return prometheus_tools()


@contextmanager
def started(cache: Path, folder: Path, command: str) -> Iterator[Place]:
    """Three replicas behind HAProxy, and clients that ask all the time."""
    prepare_model(Settings(cache_dir=cache), lambda done_bytes, total_bytes, phase: None)
    port = free_port()
    with ExitStack() as held:
        with ThreadPoolExecutor() as starting:
            futures = [
                starting.submit(Replica, folder / address, cache, address, port)
                for address in ADDRESSES
            ]
        for future in futures:
            if future.exception() is None:
                held.callback(future.result().close)
        replicas = [future.result() for future in futures]
        balancer = held.enter_context(Balancer(command, folder, port, ADDRESSES, OWNER))
        balancer.wait_for(len(ADDRESSES))
        clients = [
            held.enter_context(LiveRequests(balancer.url, REQUESTS, n_threads=6)),
            held.enter_context(OpenAICallers(balancer.url, REQUESTS[1:2], n_threads=2)),
        ]
        yield Place(replicas, balancer, clients)


def told(answers: Sequence[Answer], seconds: float, n_retried: int) -> dict[str, object]:
    """Figures of one part of the test, times in ms."""
    statuses = Counter(answer.status for answer in answers)
    return {
        "seconds": round(seconds, 1),
        "requests": len(answers),
        "statuses": dict(statuses),
        "retried": n_retried,
        "p99_ms": round(p99_s(answers) * 1000),
        "slowest_ms": round(slowest_s(answers) * 1000),
    }


def test_a_kill_a_pause_and_a_rolling_restart_are_hardly_noticed(
    model_cache: Path, tools: Path, tmp_path: Path, is_soak: bool
):
    """Of a killed replica only what it was computing is lost, and of a rolling restart nothing.

    Each replica comes back into use by itself. Prometheus sees all of them, each by its address.
    """
    command = haproxy()
    part_s = 60.0 if is_soak else 1.0
    pause_s = 20.0 if is_soak else 5.0
    figures: dict[str, dict[str, object]] = {}
    failed: dict[str, list[Answer]] = {}
    everything: list[Answer] = []

    @contextmanager
    def part(name: str) -> Iterator[None]:
        began_s, n_retried = monotonic(), place.balancer.n_retried()
        yield
        sleep(part_s)
        end_s = monotonic()
        answers = place.answers(began_s, end_s)
        everything.extend(answers)
        retried = place.balancer.n_retried() - n_retried
        figures[name] = told(answers, end_s - began_s, retried)
        failed[name] = [answer for answer in answers if answer.status != 200]

    with started(model_cache, tmp_path, command) as place:
        killed, paused, _ = place.replicas
        targets = ", ".join(one.server.url.removeprefix("http://") for one in place.replicas)
        with (
            RunningPrometheus(tools, tmp_path / "prometheus", targets, free_port()) as prometheus,
            part("undisturbed"),
        ):
            assert until(lambda: prometheus.is_up() and answering(prometheus) == len(ADDRESSES))
        with part("killed"):
            killed.kill()
            place.balancer.wait_for(2, owner=0)
            killed.start_again()
            place.balancer.wait_for(3)
        with part("paused"):
            paused.server.process.send_signal(signal.SIGSTOP)
            began_s = monotonic()
            place.balancer.wait_for(2)
            sleep(max(0.0, pause_s - (monotonic() - began_s)))
            paused.server.process.send_signal(signal.SIGCONT)
            place.balancer.wait_for(3)
        with part("rolling restart"):
            for replica in place.replicas:
                replica.end()
                replica.start_again()
                place.balancer.wait_for(3)
        with part("afterwards"):
            before = asked(place)
        shares = [now - then for now, then in zip(asked(place), before, strict=True)]
    (tmp_path / "replicas.json").write_text(json.dumps(figures, indent=2))
    told_errors = {name: [answer.reply for answer in each] for name, each in failed.items()}
    print(json.dumps(figures), told_errors)

    assert not failed["undisturbed"], told_errors
    assert not failed["rolling restart"], (told_errors, place.balancer.log)
    assert not failed["afterwards"], told_errors
    assert sum(map(len, failed.values())) < MOST_FAILED * len(everything), told_errors
    assert all(shares), "a replica has not come back into use"
    first = [answer.reply for answer in everything if answer.request is REQUESTS[0]]
    vectors = {json.dumps(reply["embeddings"]) for reply in first if "embeddings" in reply}
    assert len(vectors) == 1, "replicas give a text different vectors"


def answering(prometheus: RunningPrometheus) -> int:
    """Replicas whose requests Prometheus has counted, by its own label."""
    lines = prometheus.series('plimsoll_requests_total{route="/embed"} > 0')
    return len({line["metric"]["instance"] for line in lines})


def asked(place: Place) -> list[float]:
    """Requests to embed that each replica has answered."""
    counts = []
    for replica in place.replicas:
        page = httpx.get(f"{replica.server.url}/metrics", timeout=DEADLINE_S, trust_env=False).text
        lines = page.splitlines()
        counts.append(
            sum(
                float(line.rsplit(" ", 1)[1])
                for line in lines
                if line.startswith("plimsoll_requests_total{") and '"/embed"' in line
            )
        )
    return counts


def test_each_client_has_its_own_limits_and_collections_one_owner(
    model_cache: Path, tmp_path: Path
):
    """To the replicas every connection is HAProxy's; a collection is in one server's file."""
    command, port = haproxy(), free_port()
    options = ("--port", str(port), "--cache-dir", str(model_cache), "--preload", "--threads", "1")
    limit = {"PLIMSOLL_CLIENT_REQUESTS_PER_S": "0.01"}
    with ExitStack() as held:
        for address in ADDRESSES[:2]:
            (tmp_path / address).mkdir()
            held.enter_context(
                RunningServer(tmp_path / address, "--host", address, *options, **limit)
            )
        balancer = held.enter_context(Balancer(command, tmp_path, port, ADDRESSES[:2], OWNER))
        balancer.wait_for(2)
        answers = [
            [ask(balancer.url, f"127.0.1.{client}") for _ in range(3)] for client in range(1, 6)
        ]
        made = httpx.put(f"{balancer.url}/collections/ships", json={}, trust_env=False)
        listed = httpx.get(f"{balancer.url}/collections", trust_env=False)

    # One request at each of two replicas, of which the second came there by a retry.
    assert [[answer.status_code for answer in each] for each in answers] == [[200, 200, 429]] * 5
    assert all("retry-after" in each[-1].headers for each in answers)
    assert made.status_code == 200, made.text
    assert listed.status_code == 429  # its second request of the owner, which alone was asked


def ask(url: str, address: str) -> httpx.Response:
    """Embed a word as the client of this address."""
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(transport=transport, timeout=DEADLINE_S, trust_env=False) as client:
        return client.post(f"{url}/embed", json={"input": "ship"})
