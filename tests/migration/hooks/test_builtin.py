"""The hooks that Plimsoll brings, each doing its work."""

import asyncio
import http.server
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from plimsoll.errors import HookError
from plimsoll.migration import stages
from plimsoll.migration.hooks.builtin import dependencies
from plimsoll.migration.hooks.builtin.benchmarks import BenchmarkComparison, Comparison
from plimsoll.migration.hooks.builtin.embeddings import EmbeddingValidation, ValidateEmbeddings
from plimsoll.migration.hooks.builtin.memory import (
    Adapt,
    Adaptation,
    MemoryMonitor,
    MemoryValidation,
    MemoryWatch,
    ValidateMemory,
)
from plimsoll.migration.hooks.builtin.notices import Notices, Notify
from plimsoll.migration.hooks.occasion import Occasion
from plimsoll.migration.hooks.records import Answer
from plimsoll.migration.pace import CONSERVATIVE, FULL, RunPace
from plimsoll.migration.states import MigrationState as State
from tests.migration.hooks.occasions import judged, occasion
from tests.migration.hooks.test_hooks import outcomes, run, write_hooks
from tests.migration.models import BAD, NEW, Inside, texts
from tests.running_server import DEADLINE_S

DOCS = Path(__file__).parents[3] / "docs"
STRATEGY = [
    "validate-memory", "validate-dependencies", "benchmark-baseline", "memory-monitor", "notify",
    "adapt", "validate-embeddings", "session-export", "benchmark-comparison",
]  # fmt: skip


def ask(hook: Callable[[Occasion], Awaitable[Answer]], about: Occasion) -> Answer:
    async def play() -> Answer:
        return await hook(about)

    return asyncio.run(play())


# --- each by itself -------------------------------------------------------------------------


@pytest.mark.parametrize(("used_ratio", "stops"), [(0.6, False), (0.61, True)])
def test_memory_above_the_threshold_stops_a_run(used_ratio: float, stops: bool):
    answer = ask(MemoryValidation(ValidateMemory(threshold=0.6)), occasion(used_ratio))
    assert answer.stops is stops
    assert f"{round(used_ratio * 1000)} of 1000 MiB" in answer.reason
    assert answer.figures["used_ratio"] == used_ratio


def test_an_open_breaker_stops_a_run():
    answer = ask(MemoryValidation(ValidateMemory()), occasion(0.1, step=4, is_breaker_open=True))
    assert (answer.stops, "breaker" in answer.reason) == (True, True)


def test_memory_that_stays_above_the_limit_stops_a_run():
    """Above it for a while is what a run yields to; staying there is what it does not mend.

    However often the operator has it look: by the clock.
    """
    seconds = iter([0, 20, 40, 60, 70, 90])
    watch = MemoryWatch(MemoryMonitor(limit=0.7, patience=30), lambda: next(seconds))
    looks = [0.8, 0.8, 0.5, 0.9, 0.8, 0.75]
    answers = [ask(watch, occasion(ratio)) for ratio in looks]
    assert [answer.stops for answer in answers] == [False] * 5 + [True]
    assert answers[-1].figures == {"peak_ratio": 0.9, "looks": 6, "above_limit": 5, "limit": 0.7}


def test_a_run_takes_less_at_once_for_as_long_as_memory_is_short():
    pace, adapt = RunPace(), Adaptation(Adapt())
    limits = []
    for step in (0, 1, 2, 0, 4):
        answer = ask(adapt, occasion(step=step, pace=pace))
        limits.append(pace.limits)
    assert limits == [FULL, CONSERVATIVE, CONSERVATIVE, FULL, CONSERVATIVE]
    assert answer.figures["times"] == 2


SOUND: dict[str, dict[str, Any]] = {
    "sound": {"n_vectors": 200, "n_not_finite": 0, "n_not_unit": 0},
    "embedded_again": {"sampled": 200, "compared": 200, "greatest_distance": 1e-9},
}


@pytest.mark.parametrize(
    ("changed", "stops"),
    [
        ({}, None),
        ({"same_model": {"least_cosine": 0.995}}, None),
        ({"same_model": {"least_cosine": 0.98}}, "same_model: the least cosine is 0.9800"),
        (
            {"embedded_again": {"sampled": 200, "compared": 200, "greatest_distance": 0.02}},
            "embedded_again",
        ),
        (
            {"embedded_again": {"sampled": 200, "compared": 0, "greatest_distance": 0.0}},
            "only 0 of 200",
        ),
        (
            {"embedded_again": {"sampled": 0, "compared": 0, "greatest_distance": 0.0}},
            "only 0 of 0",
        ),
        ({"sound": {"n_vectors": 200, "n_not_finite": 1, "n_not_unit": 2}}, "3 vectors"),
    ],
)
def test_inaccurate_vectors_stop_a_run(changed: dict[str, Any], stops: str | None):
    answer = ask(EmbeddingValidation(ValidateEmbeddings()), judged({**SOUND, **changed}))
    assert answer.stops is (stops is not None)
    assert stops is None or stops in answer.reason


def test_a_fall_below_the_baseline_stops_a_run():
    baseline = {"metric": "embedding-accuracy", "ndcg_at_10": 0.40, "accuracy": 1.0}
    for after, stops in ((0.385, False), (0.37, True)):
        figures = {**SOUND, "judged_queries": {"new_ndcg_at_10": after}}
        answer = ask(Comparison(BenchmarkComparison()), judged(figures, baseline=baseline))
        assert answer.stops is stops
        assert answer.figures["ndcg_at_10"]["before"] == 0.40
        assert answer.figures["ndcg_at_10"]["after"] == after


def test_a_comparison_without_a_baseline_says_what_is_missing():
    with pytest.raises(HookError, match="name both"):
        ask(Comparison(BenchmarkComparison()), judged(SOUND))


def test_a_library_that_is_too_old_or_missing_is_wanting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dependencies, "_version", {"numpy": "1.26"}.get)
    wanting, found = dependencies._libraries(("numpy", "tokenizers"))
    assert wanting == [
        "numpy 1.26 is installed, and <3,>=2.0 is needed",
        "tokenizers is not installed",
    ]
    assert found == {"numpy": "1.26"}


@pytest.fixture
def posted() -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """A webhook: its address, what it was told, and the statuses that it is to answer with."""
    told, statuses = list[dict[str, Any]](), list[int]()

    class Webhook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop() if statuses else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/a-key", told, statuses
        server.shutdown()
        thread.join()


def test_a_webhook_is_told(posted: tuple[str, list[dict[str, Any]], list[int]]):
    address, told, statuses = posted
    notices = Notices(Notify(webhook=address))
    ask(notices, judged(SOUND))
    assert "is validating" in told[0]["message"]
    assert told[0]["migration"]["verdict"]["decision"] == "go"
    statuses.append(500)
    with pytest.raises(HookError, match=r"127\.0\.0\.1 answered 500") as refused:
        ask(notices, judged(SOUND))
    assert "a-key" not in str(refused.value)


def test_what_a_webhook_answers_is_not_read():
    """An endless answer would fill the server's memory until the hook's time is over."""

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the one who asked has gone
                while True:
                    self.wfile.write(bytes(1 << 16))

        def log_message(self, *_: object) -> None:
            pass

    async def play(address: str) -> Answer:
        async with asyncio.timeout(DEADLINE_S):
            return await Notices(Notify(webhook=address))(judged(SOUND))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            answer = asyncio.run(play(f"http://127.0.0.1:{server.server_port}/a-key"))
        finally:
            server.shutdown()
            thread.join()
    assert "is validating" in answer.reason


def test_the_page_shows_every_hook_with_its_default_options(folder: Path):
    """What is copied from it is what runs without it."""
    page = (DOCS / "migration.md").read_text(encoding="utf-8")
    table = page.split("| built in |")[1].split("\n\n")[0]
    written = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)

    async def scene(server: Inside) -> None:
        catalog = server.migrations.hooks.catalog
        assert sorted(words.split()[0] for words in written) == sorted(catalog.hooks)
        for words in written:
            name, *options = words.split()
            shown = [f"{flag.removeprefix('--').replace('-', '_')}" for flag in options[::2]]
            values = dict(zip(shown, options[1::2], strict=True))
            told = catalog.find(name).told
            for option, value in values.items():
                assert value in ("URL", "PATH") or _shows(told, option, value), (name, option)

    run(folder, scene)


def _shows(told: str, option: str, value: str) -> bool:
    """Whether `plimsoll hooks list` has the option with that value, however it is spelt."""
    parts = value.split(",")
    return f"{option} " in told and all(part.removesuffix(".0") in told for part in parts)


# --- all of them in a migration -------------------------------------------------------------


def test_the_hooks_of_the_strategy_in_one_migration(folder: Path):
    """Every one is asked with its default options, and leaves what it measured."""

    async def scene(server: Inside) -> None:
        queries = [{"query": text, "relevant": {f"d{n}": 1.0}} for n, text in enumerate(texts(12))]
        number = await server.begin("ships", NEW, hooks=STRATEGY, judged=queries)
        status = await server.until_rest(number)
        assert status.state is State.READY, status.failure
        asked = await outcomes(server, number)
        assert {hook for _, hook in asked} == {*STRATEGY}
        assert {one.outcome for one in asked.values()} == {"passed"}

        baseline = asked["before", "benchmark-baseline"].figures
        compared = asked["after", "benchmark-comparison"].figures
        assert baseline["ndcg_at_10"] == compared["ndcg_at_10"]["before"] > 0.5
        assert compared["ndcg_at_10"]["after"] > 0.5
        assert baseline["accuracy"] == pytest.approx(1, abs=1e-6)
        assert asked["before", "validate-dependencies"].figures["model"] == NEW
        assert asked["during", "memory-monitor"].figures["looks"] >= 1
        exported = Path(asked["after", "session-export"].figures["path"])
        content = json.loads(exported.read_text("utf-8"))
        assert content["migration"]["verdict"] == status.counts.migration.verdict
        assert exported.parent == folder / "data" / "exports"

    run(folder, scene)


def test_a_bad_model_does_not_pass_the_comparison(folder: Path):
    """The judge says no_go too; a hook keeps even a forced cut-over away."""

    async def scene(server: Inside) -> None:
        queries = []
        for text in texts(12):  # judged by what the old model finds first
            (best,) = (await server.search(text[:9], top_k=1)).results
            queries.append({"query": text[:9], "relevant": {best.document.id: 1.0}})
        hooks = ["benchmark-baseline", "benchmark-comparison"]
        number = await server.begin("ships", BAD, hooks=hooks, judged=queries)
        status = await server.until_rest(number)
        assert status.state is State.FAILED
        assert "'benchmark-comparison' stopped it: ndcg_at_10 fell from 1.0000" in str(
            status.failure
        )

    run(folder, scene)


def test_memory_above_the_threshold_keeps_a_migration_from_running(folder: Path):
    """With the server's own reading: it uses more than a thousandth of its budget."""
    write_hooks(folder, {"tight": {"builtin": "validate-memory --threshold 0.000001"}})

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, hooks=["tight"])
        status = await server.until_rest(number)
        assert status.failure is not None
        assert status.failure.startswith("hook 'tight' stopped it:")

    run(folder, scene)


def test_a_run_whose_memory_is_short_is_embedded_in_small_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """`adapt` reaches the reader: the same vectors, from batches of a quarter of the size."""
    sizes = list[int]()
    first_batch = stages.first_batch

    def note(*arguments: Any) -> list[tuple[int, int]]:
        rows = first_batch(*arguments)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(stages, "first_batch", note)

    async def scene(server: Inside) -> None:
        monkeypatch.setattr(type(server.core.governor), "step", property(lambda governor: 1))
        number = await server.begin("ships", NEW, hooks=["adapt"])
        status = await server.until_rest(number)
        assert status.state is State.READY, status.failure
        assert status.counts.n_vectors == 60

    run(folder, scene)
    assert max(sizes) <= CONSERVATIVE.texts
