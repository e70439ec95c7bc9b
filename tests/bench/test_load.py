"""The load test itself: a yardstick that miscounts would pass a server that fails."""

import asyncio
import contextlib
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from math import nan
from random import Random
from xml.etree import ElementTree

import numpy as np
import orjson
import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient

from plimsoll.bench.load import chart, progress
from plimsoll.bench.load.arrivals import arrivals
from plimsoll.bench.load.bodies import KINDS, MALFORMED, BodyPool, Ingredients, body_of, kind_of
from plimsoll.bench.load.chart import COLOURS, OUTCOMES
from plimsoll.bench.load.histogram import LatencyHistogram
from plimsoll.bench.load.input_files import InputFileError, read_texts
from plimsoll.bench.load.plan import parse_mix
from plimsoll.bench.load.replies import Answer, Outcome, ReplyReader, Verdict, judge
from plimsoll.bench.load.report import Second, Thresholds
from plimsoll.bench.load.runner import LoadPlan, PlanError, QuietPassError, Rate, run_load
from plimsoll.bench.load.server_facts import server_facts
from plimsoll.bench.load.tally import Tally
from plimsoll.bench.load.texts import TextSource
from plimsoll.charts.page import STYLE
from plimsoll.cli.bench import bench as bench_command
from plimsoll.cli.bench import plan_of
from plimsoll.cli.commands import main
from tests.fakes import DEADLINE_S, FakeClock, FakeOpener, FakeServer

JSON = {"Content-Type": "application/json"}
DROP = b""
SPARSE = {"kind": "sparse", "sparse": [{}], "degraded": {"reason": "memory"}}
INGREDIENTS = Ingredients(TextSource(), huge_tokens=64)


def http(status: int, document: object, **headers: str) -> bytes:
    """A reply as it goes over the wire; a header's name with _ for -."""
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in {**named, "Content-Length": len(body)}.items()]
    return "\r\n".join([f"HTTP/1.1 {status} Reply", *lines, "", ""]).encode() + body


def dense(body: bytes, shift: float = 0.0) -> bytes:
    """The right answer to a body; a text's vector says how long it is."""
    texts = orjson.loads(body)["input"]
    texts = [texts] if isinstance(texts, str) else texts
    rows = [[len(text) / 1000 + shift, 1.0] for text in texts]
    return http(200, {"kind": "dense", "embeddings": rows, "usage": {"tokens": 10 * len(rows)}})


class ScriptedServer:
    """Answers its n-th POST, from 0, with what `answer(n, body)` returns; keeps the bodies.

    A GET is answered with `health`.
    """

    def __init__(
        self,
        answer=lambda number, body: dense(body),
        *,
        reads_bodies=True,
        health: bytes = http(404, {}),
    ):
        self._health = health
        self._answer = answer
        self._reads_bodies = reads_bodies
        self._open: set[asyncio.Task] = set()
        self.bodies: list[bytes] = []
        self.url = ""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._open.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET "):
                    writer.write(self._health)
                    continue
                length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
                body = await reader.readexactly(length) if self._reads_bodies else b""
                self.bodies.append(body)
                reply = self._answer(len(self.bodies) - 1, body)
                if asyncio.iscoroutine(reply):
                    reply = await reply
                writer.write(reply)
                if reply == DROP or not self._reads_bodies:
                    return


class SteppedClock(FakeClock):
    """Passes over what is waited for, and remembers how long that was."""

    def __init__(self):
        super().__init__()
        self.waits_s: list[float] = []

    def now(self) -> float:
        return self.now_s

    async def sleep_until(self, when_s: float) -> None:
        self.waits_s.append(round(max(0.0, when_s - self.now_s), 3))
        self.now_s = max(self.now_s, when_s)
        await asyncio.sleep(0)


def run(server, *, clock=None, stop=None, **plan):
    """A report of a plan run against a scripted server, on a clock that does not wait."""

    async def both():
        async with server:
            return await run_load(
                LoadPlan(server.url, **plan), clock=clock or SteppedClock(), stop=stop
            )

    return asyncio.run(asyncio.wait_for(both(), DEADLINE_S))


SCRIPT_OF_OUTCOMES = [
    ("dense", lambda body: dense(body)),
    ("sparse", lambda body: http(200, SPARSE)),
    ("refused", lambda body: http(503, {"error": {"code": "breaker_open"}}, Retry_After="3")),
    ("refused", lambda body: http(429, {"error": {"code": "queue_full"}}, Retry_After="1")),
    ("refused", lambda body: http(413, {"error": {"code": "too_large_for_budget"}})),
    ("failed", lambda body: http(503, {})),
    ("failed", lambda body: http(500, {})),
    ("failed", lambda body: http(400, {})),
    ("failed", lambda body: http(200, b"{not JSON")),
    ("failed", lambda body: http(200, {"kind": "dense", "embeddings": "none"})),
    ("failed", lambda body: http(200, SPARSE | {"degraded": None})),
    ("failed", lambda body: DROP),
]


@pytest.mark.parametrize("speed", [{"n_clients": 4}, {"rate": Rate(50, 50)}])
def test_counts_are_those_of_the_server(speed):
    """The server wrote down what it did to every request: nothing may be lost or counted twice."""
    done = Counter()

    def answer(number, body):
        name, reply = SCRIPT_OF_OUTCOMES[number % len(SCRIPT_OF_OUTCOMES)]
        done[name] += 1
        return reply(body)

    server = ScriptedServer(answer)
    report = run(server, n_requests=150, mix={"short": 3, "long": 1}, **speed)

    totals = report.totals
    names = ("dense", "sparse", "refused", "failed")
    assert {name: getattr(totals, name) for name in names} == done
    assert totals.sent == len(server.bodies) == 150
    assert totals.tokens == 10 * done["dense"]
    assert totals.latency.n == done["dense"] + done["sparse"]
    assert sum(totals.causes.values()) == done["refused"] + done["failed"]
    assert totals.causes["429 queue_full"] == 13
    for rows in (report.by_kind.values(), report.timeline):
        for name in (*names, "sent", "tokens"):
            assert sum(getattr(row, name) for row in rows) == getattr(totals, name)


def test_a_stall_is_in_the_latency_of_every_request_that_was_due_in_it():
    """A client that waits its turn and then starts its watch would report one slow request."""
    clock = SteppedClock()

    def stall_once(number, body):
        clock.now_s += 10 if number == 0 else 0
        return dense(body)

    evenly = Rate(10, 10, poisson=False)
    report = run(ScriptedServer(stall_once), clock=clock, rate=evenly, seconds=20, max_in_flight=1)

    latency = report.totals.latency
    due_in_stall = [10 - number / 10 for number in range(100)]
    expected = sorted([*due_in_stall, *[0.0] * 100])
    assert latency.max_s == 10
    assert latency.p90_s == pytest.approx(expected[179], rel=0.011)
    assert latency.p99_s == pytest.approx(expected[197], rel=0.011)
    assert [row.dense for row in report.timeline[:11]] == [0] * 10 + [report.timeline[10].dense]
    assert report.client.lag.max_s == pytest.approx(9.9)


def test_a_request_that_could_not_be_sent_in_time_has_failed():
    """Leaving it out would make a server that blocks every connection look idle."""
    clock = SteppedClock()

    def stall_once(number, body):
        clock.now_s += 10 if number == 0 else 0
        return dense(body)

    server = ScriptedServer(stall_once)
    plan = {"rate": Rate(1, 1, poisson=False), "seconds": 20, "max_in_flight": 1, "timeout_s": 5}
    report = run(server, clock=clock, **plan)

    assert report.totals.causes == {"overdue: every client was waiting": 5}
    assert report.totals.sent == len(server.bodies) + 5 == 20


def test_a_request_without_a_reply_times_out():
    """Every loop has an end, also when the server has none."""
    forever = ScriptedServer(lambda number, body: asyncio.Event().wait())
    report = run(forever, n_clients=2, n_requests=2, timeout_s=0.05)
    assert report.totals.causes == {"no reply in time": 2}
    assert report.totals.latency.n == 2


def test_a_server_that_does_not_listen_is_a_failure():
    """The server may have been killed: that is what a load test is for."""
    server = ScriptedServer()
    run(server, n_clients=1, n_requests=1)
    plan = LoadPlan(server.url, mix={"short": 1, "hangup": 1}, n_clients=1, n_requests=9)
    report = asyncio.run(run_load(plan, clock=SteppedClock()))
    assert report.totals.causes == {"no connection": 9}


@pytest.mark.parametrize(
    ("shift", "exact", "n_wrong"), [(5e-7, False, 0), (5e-7, True, 20), (2e-6, False, 20)]
)
def test_vectors_under_load_are_compared_with_those_of_the_quiet_server(shift, exact, n_wrong):
    """Answering fast with another text's vector is the worst failure, and the quietest."""
    server = ScriptedServer(lambda number, body: dense(body, 0 if number < 3 else shift))
    report = run(server, n_clients=2, n_requests=20, n_verified=3, exact=exact)
    assert report.totals.failed == report.verification.n_wrong == n_wrong
    assert report.verification.n_compared == 20
    assert report.verification.largest_difference == pytest.approx(shift)
    assert report.totals.causes == ({"wrong vector": 20} if n_wrong else {})


def test_a_server_that_has_no_vectors_when_quiet_is_not_loaded():
    """There would be nothing to compare with, and every request would pass."""
    with pytest.raises(QuietPassError, match="failed 500"):
        run(ScriptedServer(lambda *_: http(500, {})), n_clients=1, n_requests=1, n_verified=1)


def test_a_closed_loop_ends_when_its_seconds_are_over():
    """A soak test of a night must be over in the morning."""
    clock = SteppedClock()

    def take_a_second(number, body):
        clock.now_s += 1
        return dense(body)

    report = run(ScriptedServer(take_a_second), clock=clock, n_clients=1, seconds=10)
    assert (report.totals.dense, report.seconds, report.answers_per_s) == (10, 10, 1)
    assert [row.dense for row in report.timeline] == [0] + [1] * 10


@pytest.mark.parametrize(("honours", "waits_s"), [(False, [0.05, 0.05]), (True, [7.0, 0.05])])
def test_a_refused_client_pauses(honours, waits_s):
    """Hammering is the default, since a server must survive it; a polite client waits as told."""
    replies = [http(503, {}, Retry_After="7"), http(500, {})]
    clock = SteppedClock()
    server = ScriptedServer(lambda number, body: replies[number] if number < 2 else dense(body))
    run(server, clock=clock, n_clients=1, n_requests=3, honour_retry_after=honours)
    assert clock.waits_s == waits_s


def test_a_malformed_request_is_due_a_4xx():
    """Accepting it is as wrong as breaking on it."""
    statuses = (400, 422, 200, 500)
    server = ScriptedServer(lambda number, body: http(statuses[number % 4], {}))
    report = run(server, n_clients=1, n_requests=40, mix={"malformed": 1})
    assert (report.totals.rejected, report.totals.failed) == (20, 20)
    assert report.totals.refusal_latency.n == 20


def test_the_application_rejects_every_malformed_body():
    """One that is in fact well-formed would make a good server fail."""
    server = FakeServer(FakeOpener())
    with contextlib.closing(server), TestClient(server.app) as client:
        drawn = [KINDS["malformed"].build(Random(seed), INGREDIENTS).content for seed in range(50)]
        for body in {*MALFORMED, *drawn}:
            headers = {"Content-Type": "application/json"}
            assert client.post("/embed", content=body, headers=headers).status_code == 400, body[
                :80
            ]


def test_a_client_that_hangs_up_has_sent_its_whole_request():
    """The server's work is to be dropped when it has begun, not before it was asked for."""
    server = ScriptedServer()
    report = run(server, n_clients=1, n_requests=5, mix={"hangup": 1, "short": 1e-9})
    assert (report.totals.sent, report.totals.hung_up, report.totals.latency.n) == (5, 5, 0)
    assert all(len(orjson.loads(body)["input"]) == 50 for body in server.bodies)


def test_a_big_body_that_is_refused_unread_counts_as_refused():
    """The server closes the connection while the body is sent: its answer came before that."""
    refusal = http(413, {"error": {"code": "body_too_large"}})
    server = ScriptedServer(lambda *_: refusal, reads_bodies=False)
    report = run(server, n_clients=2, n_requests=6, mix={"body20": 1})
    assert (report.totals.refused, report.totals.failed) == (6, 0)


@pytest.mark.parametrize("speed", [{"n_clients": 1}, {"rate": Rate(9, 9), "max_in_flight": 1}])
@pytest.mark.parametrize("status", [401, 403, 404, 405])
@pytest.mark.parametrize("kind", ["short", "malformed"])
def test_an_answer_that_every_request_would_get_ends_the_run(status, speed, kind):
    """Half a minute of 401 measures nothing; and a malformed body is not due one."""
    server = ScriptedServer(lambda *_: http(status, {"error": {"code": "no"}}))
    report = run(server, seconds=1000, mix={kind: 1}, **speed)
    assert report.totals.causes == {f"{status} no": 1}
    assert report.totals.sent == len(server.bodies) == 1


def test_an_interrupted_run_says_what_was_under_way():
    """Ctrl-C after an hour must not cost the hour."""
    stop = asyncio.Event()

    def answer(number, body):
        if number < 10:
            return dense(body)
        stop.set()
        return asyncio.Event().wait()

    report = run(ScriptedServer(answer), stop=stop, n_clients=1, seconds=1000)
    assert report.interrupted
    assert (report.totals.sent, report.totals.dense, report.totals.unfinished) == (11, 10, 1)


def reply_of(n_vectors: int, n_tokens: int = 77) -> bytes:
    """A dense reply with as many values a vector as the usual model's, in the server's order."""
    rows = np.random.default_rng(1).random((n_vectors, 768), np.float32)
    document = {"kind": "dense", "input_type": None, "embeddings": rows}
    document |= {"usage": {"tokens": n_tokens}, "truncated": [{"index": 0}], "errors": []}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def verdict_over(reply: bytes, n_texts: int, chunk_bytes: int):
    reader = ReplyReader()
    for start in range(0, len(reply), chunk_bytes):
        reader.feed(reply[start : start + chunk_bytes])
    return judge(body_of(["a text"] * n_texts), Answer(200, None, reader))


@pytest.mark.parametrize("chunk_bytes", [7, 1000, 4096, 10_000_000])
@pytest.mark.parametrize("n_vectors", [1, 50])
def test_a_big_reply_is_counted_in_passing(n_vectors, chunk_bytes):
    """Parsing megabytes of vectors would make the client the brake."""
    reply = reply_of(n_vectors)
    whole = verdict_over(reply, n_vectors, chunk_bytes)
    assert (whole.outcome, whole.n_tokens) == (Outcome.DENSE, 77)
    one_missing = verdict_over(reply, n_vectors + 1, chunk_bytes)
    assert (one_missing.outcome, one_missing.cause) == (
        Outcome.FAILED,
        "dense reply with answers missing",
    )
    assert verdict_over(reply[:-1], n_vectors, chunk_bytes).outcome is Outcome.FAILED


def test_a_text_without_a_vector_is_a_failure():
    """Every text that is sent has one: null under load is a wrong answer."""
    reply = orjson.dumps({"kind": "dense", "embeddings": [[1.0], None], "usage": {"tokens": 4}})
    assert verdict_over(reply, 2, 100).cause == "dense reply with answers missing"


def test_percentiles_are_those_of_the_latencies():
    """Buckets may overstate by one per cent, never understate."""
    latencies = np.random.default_rng(3).lognormal(-3, 2, 5003)
    one, other = LatencyHistogram(), LatencyHistogram()
    for place, latency in enumerate(latencies):
        (one if place % 3 else other).add(latency)
    one.merge(other)
    for percent in (0, 50, 90, 99, 99.9, 100):
        exact = np.percentile(latencies, percent, method="inverted_cdf")
        assert exact <= one.percentile(percent) * (1 + 1e-9)
        assert one.percentile(percent) <= exact * 1.0101
    assert one.percentiles().max_s == latencies.max()
    assert LatencyHistogram().percentiles().p99_s is None


@pytest.mark.parametrize("poisson", [False, True])
@pytest.mark.parametrize(
    ("first", "last", "n_first_half", "n_all"),
    [(20, 20, 1000, 2000), (0, 40, 500, 2000), (40, 0, 1500, 2000)],
)
def test_arrivals_follow_the_rate(first, last, n_first_half, n_all, poisson):
    """The areas under a straight line: what a ramp promises in each half of its time."""
    times = list(arrivals(Rate(first, last, poisson), 100, Random(5)))
    leeway = 3 * n_all**0.5 if poisson else 1
    assert times == sorted(times)
    assert times[-1] < 100
    assert len(times) == pytest.approx(n_all, abs=leeway)
    assert sum(at_s < 50 for at_s in times) == pytest.approx(n_first_half, abs=leeway)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"url": "http://example.com"}, "not this machine"),
        ({"url": "http://10.0.0.1"}, "not this machine"),
        ({"url": "https://localhost"}, "must be http"),
        ({"rate": Rate(5, 5)}, "choose one"),
        ({"n_clients": None}, "choose one"),
        ({"n_requests": None}, "needs an end"),
        ({"n_requests": None, "seconds": 1e9}, "at most 86400"),
        ({"n_clients": 0}, "at least 1"),
        ({"n_clients": None, "rate": Rate(1, 2)}, "needs seconds"),
        ({"n_clients": None, "rate": Rate(0, 0)}, "above 0"),
        ({"mix": {"medium": 1}}, "no kind medium"),
        ({"mix": {"list0": 1, "list100000": 1}}, "no kind list0, list100000"),
        ({"mix": {"short": -1}}, "above 0"),
        ({"mix": {"long": 1}, "n_verified": 4}, "the mix has none"),
    ],
)
def test_a_plan_that_must_not_run_is_refused(plan, reason):
    """Load on another machine, or without end, must be meant."""
    with pytest.raises(PlanError, match=reason):
        LoadPlan(**{"url": "http://[::1]:8080", "n_clients": 1, "n_requests": 1, **plan})


def test_bodies_are_what_their_kinds_say():
    """The load is what the name in the table says it is."""
    texts = {
        name: orjson.loads(found.build(Random(1), INGREDIENTS).content)["input"]
        for name in [*KINDS, "list1", "list10000"]
        if name != "malformed" and (found := kind_of(name))
    }
    assert len(texts["long"].split()) == 2000
    assert [len(texts[name]) for name in ("list", "list1", "list10000")] == [50, 1, 10_000]
    assert len(texts["huge"].split()) == INGREDIENTS.huge_tokens - 2
    assert len(texts["body20list"]) == len(set(texts["body20list"])) > 1000
    for name in ("body20", "body20list"):
        assert 19_900_000 < len(orjson.dumps({"input": texts[name]})) < 20 << 20


def test_a_seed_gives_the_same_requests_and_fresh_ones_are_all_different():
    """Two runs are to be comparable, and a cache in the server must not answer for the model."""
    mix = {"short": 5, "list": 1, "malformed": 1}
    one, other = (BodyPool(mix, INGREDIENTS, seed=3) for _ in range(2))
    assert [one.draw() for _ in range(200)] == [other.draw() for _ in range(200)]
    fresh = BodyPool({"long": 1}, INGREDIENTS, seed=3, fresh=True)
    assert len({fresh.draw()[1].content for _ in range(100)}) == 100
    shared = BodyPool({"body20": 1}, INGREDIENTS, seed=3, fresh=True)
    assert shared.draw()[1] is shared.draw()[1]


def test_texts_come_from_a_file(tmp_path):
    """Mixed lengths are those of real texts."""
    (tmp_path / "texts.jsonl").write_text('{"id": 1, "text": "a ship"}\n{"text": "a sea"}\n')
    assert read_texts(tmp_path / "texts.jsonl") == ["a ship", "a sea"]
    for second in ('{"title": "a sea"}', "a sea"):
        (tmp_path / "texts.jsonl").write_text(f'{{"text": "a ship"}}\n{second}\n')
        with pytest.raises(InputFileError, match="line 2"):
            read_texts(tmp_path / "texts.jsonl")


@contextlib.contextmanager
def serving(answer) -> Iterator[str]:
    """The address of a scripted server in a thread of its own."""
    server, loop, ready = ScriptedServer(answer), asyncio.new_event_loop(), threading.Event()
    done = asyncio.Event()

    async def serve():
        async with server:
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield server.url
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def bench(*arguments: str) -> Result:
    """`plimsoll bench`."""
    return CliRunner().invoke(main, ["bench", *arguments])


def test_the_command_writes_table_json_and_charts_and_fails_by_its_thresholds(tmp_path):
    """What a pipeline reads is the exit code; what a person reads is the rest."""
    files = {"json": tmp_path / "run.json", "html": tmp_path / "run.html"}
    arguments = ["--clients", "2", "--requests", "20", "--mix", "short=3,list=1"]
    arguments += ["--json", str(files["json"]), "--html", str(files["html"])]
    with serving(lambda number, body: http(500, {}) if number == 4 else dense(body)) as url:
        passed = bench("--url", url, *arguments, "--max-failed", "0.05", "--max-p99", "60")
        missed = bench("--url", url, *arguments, "--min-dense", "1.1")

    assert (passed.exit_code, missed.exit_code) == (0, 1)
    out = passed.stdout + missed.stdout
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"^total +20 +19 +0 +0 +0 +1 ", out, flags=re.MULTILINE)
    assert "MISS: dense 100 %, at least 110 %" in out
    found = orjson.loads(files["json"].read_bytes())
    assert found["totals"]["sent"] == sum(row["sent"] for row in found["timeline"]) == 20
    assert found["misses"] == ["dense 100 %, at least 110 %"]
    page = files["html"].read_text(encoding="utf-8")
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page)]
    bars = drawings[0].findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == sum(1 for row in found["timeline"] if row["dense"])
    assert len(drawings) == 4


def test_thresholds_are_not_held_by_what_was_not_measured():
    """A server that answered nothing has no latency, and must not pass for a fast one."""
    report = run(ScriptedServer(lambda *_: http(500, {})), n_clients=1, n_requests=2)
    misses = Thresholds(max_failed_ratio=0.01, min_dense_ratio=0.99, max_p99_s=1).misses(report)
    assert misses == [
        "failed 100 %, at most 1 %",
        "dense 0 %, at least 99 %",
        "p99 not measured, at most 1 s",
    ]


@pytest.mark.parametrize(
    "line", [{"max_failed_ratio": nan}, {"min_dense_ratio": nan}, {"max_p99_s": nan}]
)
def test_a_threshold_that_is_no_number_is_not_held(line: dict[str, float]):
    """Every comparison with it is false, and a pipeline would pass for ever."""
    report = run(ScriptedServer(lambda _, body: dense(body)), n_clients=1, n_requests=2)
    assert len(Thresholds(**line).misses(report)) == 1


def plan_from(*arguments: str) -> LoadPlan:
    """The plan of these options."""
    return plan_of(bench_command.make_context("bench", [*arguments]).params)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--url", "http://example.com"), "example.com is not this machine"),
        (("--rate", "1", "--clients", "2"), "choose one of --clients and --rate"),
        (("--ramp", "5"), "'5' is not a ramp"),
        (("--header", "key"), "a header is NAME: VALUE"),
        (("--header", "X-Key: é"), "the header X-Key has characters that no header has"),
        (("--header", "X Key: e"), "'X Key' is no name of a header"),
        (("--json", "no/such/folder/run.json"), "there is no folder"),
        (("--html", "no/such/folder/run.html"), "there is no folder"),
        (("--json", "/proc/run.json"), "no file can be made in /proc"),
        (("--constant",), "--constant goes with --rate or --ramp"),
        (("--max-in-flight", "9"), "--max-in-flight goes with --rate or --ramp"),
        (("--rate", "1", "--honour-retry-after"), "--honour-retry-after goes with --clients"),
        (("--exact",), "--exact goes with --verify"),
        (("--huge-tokens", "9"), "--huge-tokens goes with the kind huge"),
        (("--verify", "-1"), "n_verified must be from 0"),
        (("--seed", "9" * 20), "seed must be from"),
        (("--json", "peers.json", "peers"), "--json is an option of the load test"),
        (("--baseline", "missing.json"), "--baseline"),
        (("--baseline", "texts.jsonl"), "texts.jsonl is no report of a load test"),
        (("--baseline", "text.txt"), "text.txt: "),
        (("--texts", "text.txt"), "text.txt, line 1: "),
        (("--url", "http://[::1"), "must be http://HOST:PORT"),
        (("--url", "http://localhost:port"), "must be http://HOST:PORT"),
    ],
)
def test_a_run_that_would_end_in_nothing_is_not_begun(tmp_path, monkeypatch, arguments, told):
    """A folder that is missing after an hour's run costs the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "a ship"}\n')
    (tmp_path / "text.txt").write_text("a ship\n")
    done = bench(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_a_run_that_was_never_answered_is_no_measurement(tmp_path):
    """Code 2, as when it could not begin: no server listens there."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    done = bench("--url", url, "--requests", "2", "--clients", "1")
    assert done.exit_code == 2
    assert "nothing was answered" in done.stderr
    assert "no connection" in done.stdout


def test_an_error_of_the_program_is_no_mistake_in_the_options(monkeypatch):
    """A ValueError of a bug was told as a wrong option, without the place where it came from."""

    def broken(texts):
        raise ValueError("a bug")

    monkeypatch.setattr("plimsoll.bench.load.plan.parse_mix", broken)
    assert str(bench("--requests", "1").exception) == "a bug"


def test_two_runs_stand_beside_each_other(tmp_path):
    """Whether a change helped is the question that a second run is made for."""
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    page = tmp_path / "run.html"
    with serving(lambda number, body: dense(body)) as url:
        load = ("--url", url, "--clients", "1")
        bench(*load, "--requests", "4", "--json", str(first))
        done = bench(
            *(*load, "--requests", "8", "--mix", "list", "--json", str(second)),
            *("--baseline", str(first), "--html", str(page)),
        )
    assert done.exit_code == 0, done.stderr
    before, now = (orjson.loads(path.read_bytes())["answers_per_s"] for path in (first, second))
    change = f"{now / before - 1:+.1%}"
    assert re.search(rf"^answers/s +\S+ +\S+ +{re.escape(change)}$", done.stdout, re.MULTILINE)
    assert re.search(r"^load differs +mix$", done.stdout, re.MULTILINE)
    assert "Beside the earlier run" in page.read_text(encoding="utf-8")


def test_what_the_server_says_of_itself_stands_in_the_report():
    """A figure without its model and its budget cannot be compared with another."""
    health = {
        "version": "1.2",
        "model": {"name": "m", "fingerprint": "v1:f"},
        "memory": {"used_bytes": 1 << 20, "budget_bytes": 4 << 20, "budget_source": "a limit"},
        "plan": {"engine_threads": 2, "step": 1},
    }

    async def facts_from(answer: bytes):
        async with ScriptedServer(health=answer) as server:
            return await server_facts(server.url, {})

    facts = asyncio.run(facts_from(http(200, health)))
    none = asyncio.run(facts_from(http(404, {})))
    assert facts["server"] == "Plimsoll 1.2"
    assert facts["model"] == "m v1:f"
    assert facts["memory"] == "1 of 4 MiB (a limit)"
    assert none == {}


def test_the_second_in_which_a_run_ends_is_not_drawn():
    """It holds a part of a second's answers and would look like a fall."""
    timeline = [Second(number, sent=1, dense=1) for number in range(3)]
    report = replace(run(ScriptedServer(), n_clients=1, n_requests=1), timeline=timeline)
    drawn = [
        re.findall(r"<rect", chart.page(replace(report, seconds=seconds))) for seconds in (2.4, 3.0)
    ]
    assert [len(bars) for bars in drawn] == [2, 3]


def colours(style: str, mode: str) -> dict[str, str]:
    """The colours of a style sheet on a light page, or those that a dark one has of its own."""
    light, _, dark = style.partition("prefers-color-scheme: dark")
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light if mode == "light" else dark))


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("names", [OUTCOMES, ("p50", "p90", "p99", "max")])
def test_colours_that_stand_together_can_be_told_apart(mode, names):
    """In the dark too, where two blues were one."""
    shades = colours(COLOURS, "light") | colours(COLOURS, mode)
    for one, other in combinations(names, 2):
        assert lab_distance(shades[one], shades[other]) > 25, (one, other)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_mark_stands_out_from_the_page(mode):
    """By 3 to 1, as WCAG 1.4.11 asks of graphics; text by 4.5 to 1."""
    shades = colours(STYLE, mode) | colours(COLOURS, mode)
    page = luminance(shades["page"])

    def contrast(name: str) -> float:
        low, high = sorted((page, luminance(shades[name])))
        return (high + 0.05) / (low + 0.05)

    marks = (*OUTCOMES, "p50", "p90", "p99", "max")
    assert [name for name in marks if contrast(name) < 3] == []
    assert [name for name in ("ink", "faint", "failed") if contrast(name) < 4.5] == []


def luminance(colour: str) -> float:
    """Of #rrggbb, from 0 to 1. Source: WCAG 2.2."""
    return float(linear_of(colour) @ [0.2126, 0.7152, 0.0722])


def lab_distance(one: str, other: str) -> float:
    """How different two colours look (CIE 1976); 2 can just be seen."""
    return float(np.linalg.norm(lab(one) - lab(other)))


def linear_of(colour: str) -> np.ndarray:
    """Red, green and blue of #rrggbb, linear in light. Source: IEC 61966-2-1."""
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(colour: str) -> np.ndarray:
    """#rrggbb in CIELAB under D65. Source: CIE 15."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear_of(colour) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("n_sent", [1, 123_456_789])
def test_the_line_of_progress_fits_a_terminal(n_sent):
    """A longer one would fold, and each redraw leave a line behind."""
    tally = Tally(["short"])
    for outcome in Outcome:
        for _ in range(2):
            tally.note_sent("short", at_s=0, lag_s=0)
            tally.note_end("short", Verdict(outcome), at_s=0, latency_s=0.1234)
        tally.by_kind["short"].outcomes[outcome] = n_sent
    line = progress._line(tally, 86_399)
    assert len(line) < 80
    assert "failed" in line


def test_options_become_a_plan():
    """The command line and the tests that import the runner run the same thing."""
    plan = plan_from("--ramp", "5:50", "--seconds", "9", "--mix", "short=60,huge=0,list")
    assert (plan.rate, plan.n_clients, plan.seconds) == (Rate(5, 50), None, 9)
    assert plan.mix == {"short": 60, "list": 1}
    assert plan_from().n_clients == 8
    assert "secret" not in str(plan_from("--header", "X-Key: secret").as_dict())
    with pytest.raises(PlanError, match="short=60"):
        parse_mix("short=many")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8471"),
        ("0.0.0.0", "http://127.0.0.1:8471"),
        ("[::]", "http://127.0.0.1:8471"),
        ("::1", "http://[::1]:8471"),
    ],
)
def test_the_server_of_these_settings_is_the_one_that_is_loaded(monkeypatch, tmp_path, host, url):
    """`serve` and `bench` in one shell, or in one folder with a .env, mean one server."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PLIMSOLL_PORT=8471\n")
    monkeypatch.setenv("PLIMSOLL_HOST", host)
    assert plan_from().url == url
    assert plan_from("--url", "http://127.0.0.1:1").url == "http://127.0.0.1:1"


def test_a_port_that_only_the_server_knows_is_asked_for(monkeypatch, tmp_path):
    """A guess would put the load on another program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLIMSOLL_PORT", "0")
    done = bench("--requests", "1")
    assert done.exit_code == 2
    assert "give --url" in done.stderr


@pytest.mark.parametrize("verify", ["0", "1"])
@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "--header 'Authorization: Bearer KEY'"), (404, "POST /embed is not there: --url")],
)
def test_a_server_that_will_not_answer_otherwise_gets_a_remedy(verify, status, remedy):
    """Before the load as after it: a code alone does not say what to do."""
    with serving(lambda *_: http(status, {"error": {"code": "no"}})) as url:
        done = bench("--url", url, "--clients", "1", "--requests", "2", "--verify", verify)
    assert done.exit_code == 2
    assert done.stderr.count(remedy) == 1


def test_a_key_that_is_withdrawn_ends_the_run_with_what_there_is():
    """What was answered before stands in the table, but the run is no measurement."""
    with serving(lambda number, body: http(401, {}) if number == 3 else dense(body)) as url:
        done = bench("--url", url, "--clients", "1", "--requests", "9")
    assert done.exit_code == 2
    assert "Bearer KEY" in done.stderr
    assert re.search(r"^total +4 +3 ", done.stdout, flags=re.MULTILINE)


def test_every_kind_is_described_in_the_manual():
    """What --help prints is the only one."""
    described = re.findall(r"^ +(\w+)  +", bench_command.help or "", flags=re.MULTILINE)
    assert set(KINDS) <= set(described)
