"""Runs that find no memory: they are made smaller, and no text fails for another one's sake.

With a fake model that fails as a test says, and with a real one whose allocations are refused.
"""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from plimsoll.composition.models import open_model
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.backends.onnx_runner import Runner
from plimsoll.errors import EncodeMemoryError
from plimsoll.policy import runs as run_policy
from plimsoll.policy.runs import ATTEMPTS
from plimsoll.serving.executor import RunExecutor
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import DEADLINE_S, FakeModel, metric
from tests.serving.test_executor import (
    LONG_S,
    PAUSED,
    WatchedModel,
    Watcher,
    encode,
    expected,
    limits,
    queued,
    run_executor,
    text,
)
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic

# What ONNX Runtime 1.32 raises, as builtins.RuntimeError: of attention, which has no arena, and of
# the graphs that share one. `test_what_a_refused_allocation_really_raises` compares.
NO_ARENA = (
    "Error in execution: Non-zero status code returned while running MultiHeadAttention node. "
    "Name:'' Status Message: std::bad_alloc"
)
ARENA = (
    "Error in execution: Non-zero status code returned while running Mul node. Name:'' Status "
    "Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to "
    "allocate memory for requested buffer of size 3145728\n"
)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of a run that finds no memory."""
    monkeypatch.setattr(run_policy, "FIRST_PAUSE_S", 0)


def recoveries(telemetry: Telemetry) -> dict[str, float]:
    """How many were retried, recovered and failed at level 1."""
    page = telemetry.render().decode()
    return {
        outcome: metric(page, f'plimsoll_recoveries_total{{level="1",outcome="{outcome}"}}')
        for outcome in ("retried", "recovered", "failed")
    }


def more_than(n_texts: int) -> WatchedModel:
    """A model that has memory for so many texts at a time."""
    return WatchedModel(
        lambda texts: EncodeMemoryError("no memory") if len(texts) > n_texts else None
    )


def poisoned_by(marker: int) -> WatchedModel:
    """A model that has no memory for one text."""

    def failure(texts: Sequence[np.ndarray]) -> Exception | None:
        is_in = any(marker in ids for ids in texts)
        return EncodeMemoryError("no memory") if is_in else None

    return WatchedModel(failure)


# --- smaller runs ---------------------------------------------------------------------------


def test_a_run_that_finds_no_memory_is_halved_until_it_fits():
    """Every text gets its row; memory is given back before each try, and all of it is counted."""
    telemetry, model = Telemetry("test"), more_than(2)
    texts = [text(index) for index in range(8)]

    async def scenario(runs: RunExecutor) -> None:
        call = await queued(runs, model, *texts)
        runs.set_limits(limits())
        np.testing.assert_array_equal(await call, [expected(ids) for ids in texts])

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, telemetry=telemetry)
    assert model.run_sizes == [8, 4, 2, 2, 4, 2, 2]
    assert recoveries(telemetry) == {"retried": 3, "recovered": 4, "failed": 0}
    assert model.n_releases == 3


def test_a_text_that_never_finds_memory_fails_its_own_request_alone():
    """After every way to take less: alone, and in the end with one thread."""
    telemetry, model = Telemetry("test"), poisoned_by(101)

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n)) for n in range(3)]
        runs.set_limits(limits(threads=3))
        with pytest.raises(EncodeMemoryError):
            await calls[1]
        for n in (0, 2):
            np.testing.assert_array_equal(await calls[n], [expected(text(n))])

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, telemetry=telemetry)
    tries = [options["n_threads"] for options, texts in zip(model.options, model.runs, strict=True)
             if any(101 in ids for ids in texts)]  # fmt: skip
    assert model.run_sizes == [3, 2, 1, *[1] * (ATTEMPTS - 1), 1]
    assert tries == [3, 3, 3, 3, 1]
    assert recoveries(telemetry)["failed"] == 1


def test_a_text_that_is_alone_from_the_start_is_tried_as_often():
    """It may find memory at the last try."""
    telemetry = Telemetry("test")
    errors = [*[EncodeMemoryError("no memory")] * (ATTEMPTS - 1), None]
    model = WatchedModel(lambda texts: errors.pop(0))

    async def scenario(runs: RunExecutor) -> None:
        np.testing.assert_array_equal(await encode(runs, model, text(5)), [expected(text(5))])

    run_executor(scenario, telemetry=telemetry)
    assert recoveries(telemetry) == {"retried": ATTEMPTS - 1, "recovered": 1, "failed": 0}


class Starved(FakeModel):
    """Finds no memory; texts but the first one only after `answered`."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = threading.Event()

    def encode(self, texts: Sequence[np.ndarray], **options: object) -> np.ndarray:
        self.runs.append(list(texts))
        if texts[0][1] != 100:
            assert self.answered.wait(DEADLINE_S)
        raise EncodeMemoryError("no memory to compute with")


def test_when_one_text_finds_no_memory_the_others_of_its_request_are_not_tried():
    """Each would be tried again and again, with all other requests behind it."""
    model = Starved()

    async def scenario(runs: RunExecutor) -> None:
        with pytest.raises(EncodeMemoryError):
            await encode(runs, model, *(text(index) for index in range(32)))
        await asyncio.sleep(0)  # a text is dropped in the turn after its waiter has left
        model.answered.set()

    run_executor(scenario)
    # One may have been under way.
    assert sum(texts[0][1] != 100 for texts in model.runs) <= 1


@pytest.mark.parametrize("error", [EncodeMemoryError("no memory"), ZeroDivisionError()])
def test_giving_memory_back_may_fail_and_the_smaller_run_is_tried_all_the_same(error: Exception):
    """It runs a small graph itself, and is only there to help the run that follows."""
    model = more_than(1)
    model.release_error = error

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n)) for n in range(2)]
        runs.set_limits(limits())
        assert [len(await call) for call in calls] == [1, 1]
        assert len(await encode(runs, model, text(5))) == 1

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S)
    assert model.n_releases == 1


def test_an_error_of_another_kind_reaches_the_texts_of_its_run_and_no_others():
    """It is no reason to compute anything again, and no other text's matter."""
    telemetry = Telemetry("test")
    model = WatchedModel(lambda texts: RuntimeError("broken") if 101 in texts[0] else None)

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n, 100)) for n in (1, 2, 3)]
        runs.set_limits(limits(1))  # two of them make a run
        for call in calls[:2]:
            with pytest.raises(RuntimeError, match="broken"):
                await call
        assert len(await calls[2]) == 1

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, telemetry=telemetry)
    assert model.run_sizes == [2, 1]
    assert recoveries(telemetry) == {"retried": 0, "recovered": 0, "failed": 0}


def test_only_texts_that_got_rows_count_as_work_done():
    """Runs that fail at once would pass for an engine of endless speed, and the queue with it."""
    model, watcher = poisoned_by(101), Watcher()

    async def scenario(runs: RunExecutor) -> None:
        with pytest.raises(EncodeMemoryError):
            await encode(runs, model, text(1, 7))
        model.failure = lambda texts: RuntimeError("broken")
        with pytest.raises(RuntimeError):
            await encode(runs, model, text(2, 7))
        model.failure = lambda texts: None
        await encode(runs, model, text(2, 5))
        await watcher.saw(3)

    run_executor(scenario, watcher=watcher)
    assert watcher.told[::2] == [700, 700, 500]
    counted = [(run.n_texts, run.n_tokens, run.longest_tokens) for run in watcher.ended]
    assert counted == [(0, 0, 7), (0, 0, 7), (1, 5, 5)]
    assert [run.n_retries for run in watcher.ended] == [ATTEMPTS - 1, 0, 0]


def test_a_run_of_which_a_part_fails_counts_the_texts_that_came_to_rows():
    """It is one run from its begin to its end, however often its parts were tried."""
    model, watcher = poisoned_by(101), Watcher()

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n, 2 + n)) for n in range(4)]
        runs.set_limits(limits())
        await asyncio.wait(calls)
        await watcher.saw(1)
        assert [call.exception() is None for call in calls] == [True, False, True, True]

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, watcher=watcher)
    (run,) = watcher.ended
    assert (run.n_texts, run.n_tokens, run.longest_tokens) == (3, 2 + 4 + 5, 5)
    assert run.n_retries == 1 + 1 + (ATTEMPTS - 2)  # the run, its half, the text alone


# --- refused allocations --------------------------------------------------------------------


@pytest.mark.parametrize("message", [NO_ARENA, ARENA, "std::bad_alloc", "bad allocation"])
def test_a_refused_allocation_is_known_by_its_message(message: str):
    """ONNX Runtime has no class of its own for it."""
    assert OnnxBackend.is_allocation_failure(RuntimeError(message))


@pytest.mark.parametrize(
    "message",
    [
        "Error in execution: Non-zero status code returned while running MultiHeadAttention node. "
        "Name:'' Status Message: Input 'query' and 'key' shall have same dim 0 (batch size)",
        "",
    ],
)
def test_other_errors_are_no_refused_allocations(message: str):
    """A smaller run would not help, and the breaker would open for a bug."""
    assert not OnnxBackend.is_allocation_failure(RuntimeError(message))


@pytest.mark.parametrize("message", [NO_ARENA, ARENA])
def test_vectors_after_a_recovery_are_those_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
):
    """Bit for bit: a run that was split is no other run."""
    telemetry = Telemetry("test")
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    random = np.random.default_rng(2)
    texts = [random.integers(104, TINY.vocab, n) for n in random.integers(2, 200, 12)]
    attend, calls = Runner.attend, iter(range(1 << 30))

    def fails_at_times(self: Runner, *arrays: np.ndarray) -> None:
        if next(calls) in (3, 4, 9):  # in several runs, in one or both of the threads
            raise RuntimeError(message)
        attend(self, *arrays)

    async def scenario(runs: RunExecutor) -> None:
        call = asyncio.create_task(runs.encode(model, texts, TINY.hidden))
        await asyncio.sleep(0)
        runs.set_limits(limits(threads=2))
        np.testing.assert_allclose(await call, plain, rtol=0, atol=0)

    with opened(small_settings(tmp_path, file, threads=2)) as model:
        plain = model.finish(model.encode(texts), TINY.hidden)
        monkeypatch.setattr(Runner, "attend", fails_at_times)
        run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, telemetry=telemetry)

    counts = recoveries(telemetry)
    assert counts["retried"] >= 2
    assert (counts["recovered"] > 0, counts["failed"]) == (True, 0)


def test_no_thread_of_the_engine_is_left_behind_in_a_run_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It would still work with bindings that the next try hands to others."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    texts = [np.arange(104, 104 + TINY.context)] * 3  # a pack for each thread
    attend, all_at_work = Runner.attend, threading.Barrier(3)
    failed, ended = threading.Event(), threading.Event()
    open_runner, runners = OnnxBackend.open_runner, list[Runner]()

    def open_and_note(self: OnnxBackend, n_threads: int) -> Runner:
        runners.append(open_runner(self, n_threads))
        return runners[-1]

    def attend_or_fail(self: Runner, *arrays: np.ndarray) -> None:
        if not failed.is_set():
            all_at_work.wait(DEADLINE_S)
        failing, lasting = runners[-2:]  # two of the engine's three
        if self is failing:
            failed.set()
            raise RuntimeError(NO_ARENA)
        assert failed.wait(DEADLINE_S)
        for _ in range(100 if self is lasting else 1):
            attend(self, *arrays)
        if self is lasting:
            ended.set()

    monkeypatch.setattr(OnnxBackend, "open_runner", open_and_note)
    with opened(small_settings(tmp_path, file, threads=3)) as model:
        monkeypatch.setattr(Runner, "attend", attend_or_fail)
        with pytest.raises(EncodeMemoryError):
            model.encode(texts)
        assert ended.is_set()


def test_a_closed_model_has_no_memory_to_give_back(tmp_path: Path):
    """Idle models are closed for want of memory, which may be just what a run waits for too."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    settings = small_settings(tmp_path, file, threads=1)
    model = open_model(settings, lambda *_: None)
    model.close()

    model.release_memory()


# Takes all memory that there is below a limit, so that the next allocation is refused.
STARVING = """
import json, resource, sys
from pathlib import Path
import numpy as np
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from tests.small_models import TINY, opened, small_settings

runners, open_runner = [], OnnxBackend.open_runner

def open_and_note(self, n_threads):
    runners.append(open_runner(self, n_threads))
    return runners[-1]

def starved(work):
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, resource.RLIM_INFINITY))
    ballast = []
    for block_bytes in (1 << 20, 1 << 15):
        try:
            while True:
                ballast.append(bytearray(block_bytes))
        except MemoryError:
            pass
    del ballast[-16:]  # for exceptions and their messages
    try:
        work()
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        return [type(error).__module__, type(error).__name__, str(error)]

folder, file = map(Path, sys.argv[1:])
rows = np.zeros((32768, TINY.hidden), np.float32)  # 8 MiB, and twice as much between the matrices
texts = [np.arange(104, 104 + TINY.context)] * 16
OnnxBackend.open_runner = open_and_note
with opened(small_settings(folder, file, threads=1)) as model:
    runner = runners[-1]  # the engine's
    before = model.encode(texts)
    found = {
        "attend": starved(lambda: runner.attend(rows[:1024], rows, rows)),
        "transform": starved(lambda: runner.transform(0, rows, rows)),
        "encode": starved(lambda: model.encode(texts)),
        "same": bool((model.encode(texts) == before).all()),
    }
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps RLIMIT_AS")
def test_what_a_refused_allocation_really_raises(tmp_path: Path):
    """Classes and words are ONNX Runtime's own and may change with it: then this test says so."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    done = subprocess.run(
        [sys.executable, "-c", STARVING, str(tmp_path), str(file)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["attend"] == ["builtins", "RuntimeError", NO_ARENA]
    assert found["transform"][:2] == ["builtins", "RuntimeError"]
    assert "Failed to allocate memory for requested buffer of size" in found["transform"][2]
    assert OnnxBackend.is_allocation_failure(RuntimeError(found["transform"][2]))
    assert found["encode"][:2] == ["plimsoll.errors", "EncodeMemoryError"]
    assert found["same"]
