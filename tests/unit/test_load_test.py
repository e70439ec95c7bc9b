"""The load test itself: a yardstick that miscounts would pass a server that fails."""

import asyncio
import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient

from scripts.load.arrivals import arrivals
from scripts.load.bodies import KINDS, MALFORMED, BodyPool, Ingredients, body_of
from scripts.load.command import main, parse
from scripts.load.histogram import LatencyHistogram
from scripts.load.plan import parse_mix
from scripts.load.replies import Answer, Outcome, ReplyReader, judge
from scripts.load.report import Thresholds
from scripts.load.runner import LoadPlan, PlanError, QuietPassError, Rate, run_load
from scripts.load.texts import TextSource, read_texts
from tests.fakes import DEADLINE_S, FakeClock, FakeOpener, FakeServer

SCRIPT = Path(__file__).parents[2] / "scripts" / "load_test.py"
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
    """Answers its n-th request, from 0, with what `answer(n, body)` returns; keeps the bodies."""

    def __init__(self, answer=lambda number, body: dense(body), *, reads_bodies=True):
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


def test_nobody_listening_is_a_failure():
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
        name: orjson.loads(KINDS[name].build(Random(1), INGREDIENTS).content)["input"]
        for name in KINDS
        if name != "malformed"
    }
    assert len(texts["long"].split()) == 2000
    assert (len(texts["list"]), len(texts["list500"])) == (50, 500)
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
    (tmp_path / "texts.jsonl").write_text('{"text": "a ship"}\n{"title": "a sea"}\n')
    with pytest.raises(ValueError, match="line 2"):
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


def test_the_command_writes_table_json_and_charts_and_fails_by_its_thresholds(tmp_path, capsys):
    """What a pipeline reads is the exit code; what a person reads is the rest."""
    files = {"json": tmp_path / "run.json", "html": tmp_path / "run.html"}
    arguments = ["--clients", "2", "--requests", "20", "--mix", "short=3,list=1"]
    arguments += ["--json", str(files["json"]), "--html", str(files["html"])]
    with serving(lambda number, body: http(500, {}) if number == 4 else dense(body)) as url:
        passed = main("", ["--url", url, *arguments, "--max-failed", "0.05", "--max-p99", "60"])
        missed = main("", ["--url", url, *arguments, "--min-dense", "1.1"])

    assert (passed, missed) == (0, 1)
    out = capsys.readouterr().out
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


def test_options_become_a_plan():
    """The command line and the tests that import the runner run the same thing."""
    plan = parse("", ["--ramp", "5:50", "--seconds", "9", "--mix", "short=60,huge=0,list"]).plan
    assert (plan.rate, plan.n_clients, plan.seconds) == (Rate(5, 50), None, 9)
    assert plan.mix == {"short": 60, "list": 1}
    assert parse("", []).plan.n_clients == 8
    assert "secret" not in str(parse("", ["--header", "X-Key: secret"]).plan.as_dict())
    assert main("", ["--url", "http://example.com"]) == 2
    with pytest.raises(PlanError, match="short=60"):
        parse_mix("short=many")


def test_every_kind_is_described_in_the_script():
    """Its text is the only manual."""
    described = re.findall(r"^(\w+)  +", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(KINDS) <= set(described)
