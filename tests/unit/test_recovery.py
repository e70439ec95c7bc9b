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

from app.composition import open_model
from app.encoder.session import Runner, is_allocation_failure
from app.errors import EncodeMemoryError
from app.serving import executor
from app.serving.executor import ATTEMPTS, RunExecutor
from app.telemetry import Telemetry
from tests.fakes import DEADLINE_S, FakeModel, metric
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic
from tests.unit.test_executor import (
    LONG_S,
    PAUSED,
    WatchedModel,
    expected,
    limits,
    queued,
    run_executor,
    text,
)

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
    monkeypatch.setattr(executor, "FIRST_PAUSE_S", 0)


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
        lambda wave: EncodeMemoryError("no memory") if len(wave) > n_texts else None
    )


def poisoned_by(marker: int) -> WatchedModel:
    """A model that has no memory for one text."""
    return WatchedModel(
        lambda wave: EncodeMemoryError("no memory") if any(marker in ids for ids in wave) else None
    )


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
    assert model.wave_sizes == [8, 4, 2, 2, 4, 2, 2]
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
    tries = [options["n_threads"] for options, wave in zip(model.options, model.waves, strict=True)
             if any(101 in ids for ids in wave)]  # fmt: skip
    assert model.wave_sizes == [3, 2, 1, *[1] * (ATTEMPTS - 1), 1]
    assert tries == [3, 3, 3, 3, 1]
    assert recoveries(telemetry)["failed"] == 1


def test_a_text_that_is_alone_from_the_start_is_tried_as_often():
    """It may find memory at the last try."""
    telemetry = Telemetry("test")
    errors = [*[EncodeMemoryError("no memory")] * (ATTEMPTS - 1), None]
    model = WatchedModel(lambda wave: errors.pop(0))

    async def scenario(runs: RunExecutor) -> None:
        np.testing.assert_array_equal(await runs.encode(model, [text(5)]), [expected(text(5))])

    run_executor(scenario, telemetry=telemetry)
    assert recoveries(telemetry) == {"retried": ATTEMPTS - 1, "recovered": 1, "failed": 0}


class Starved(FakeModel):
    """Finds no memory; texts but the first one only after `answered`."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = threading.Event()

    def encode(self, wave: Sequence[np.ndarray], **options: object) -> np.ndarray:
        self.waves.append(list(wave))
        if wave[0][1] != 100:
            assert self.answered.wait(DEADLINE_S)
        raise EncodeMemoryError("no memory to compute with")


def test_when_one_text_finds_no_memory_the_others_of_its_request_are_not_tried():
    """Each would be tried again and again, with everybody else behind it."""
    model = Starved()

    async def scenario(runs: RunExecutor) -> None:
        with pytest.raises(EncodeMemoryError):
            await runs.encode(model, [text(index) for index in range(32)])
        model.answered.set()

    run_executor(scenario)
    # One may have been under way.
    assert sum(wave[0][1] != 100 for wave in model.waves) <= 1


@pytest.mark.parametrize("error", [EncodeMemoryError("no memory"), ZeroDivisionError()])
def test_giving_memory_back_may_fail_and_the_engine_goes_on(error: Exception):
    """It runs a small graph itself. A thread that dies of it would leave everybody waiting."""
    model = more_than(1)

    def release_memory() -> None:
        raise error

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n)) for n in range(2)]
        runs.set_limits(limits())
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        if isinstance(error, EncodeMemoryError):
            assert [len(rows) for rows in outcomes] == [1, 1]
        else:
            assert outcomes == [error, error]
        assert len(await runs.encode(model, [text(5)])) == 1

    model.release_memory = release_memory  # type: ignore[method-assign]
    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S)


def test_an_error_of_another_kind_reaches_the_texts_of_its_run_and_no_others():
    """It is no reason to compute anything again, and nobody else's matter."""
    telemetry = Telemetry("test")
    model = WatchedModel(lambda wave: RuntimeError("broken") if 101 in wave[0] else None)

    async def scenario(runs: RunExecutor) -> None:
        calls = [await queued(runs, model, text(n, 100)) for n in (1, 2, 3)]
        runs.set_limits(limits(1))  # two of them make a run
        for call in calls[:2]:
            with pytest.raises(RuntimeError, match="broken"):
                await call
        assert len(await calls[2]) == 1

    run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, telemetry=telemetry)
    assert model.wave_sizes == [2, 1]
    assert recoveries(telemetry) == {"retried": 0, "recovered": 0, "failed": 0}


def test_only_texts_that_got_rows_count_as_work_done():
    """Runs that fail at once would pass for an engine of endless speed, and the queue with it."""
    model = poisoned_by(101)
    told: list[int] = []

    async def scenario(runs: RunExecutor) -> None:
        with pytest.raises(EncodeMemoryError):
            await runs.encode(model, [text(1, 7)])
        model.failure = lambda wave: RuntimeError("broken")
        with pytest.raises(RuntimeError):
            await runs.encode(model, [text(2, 7)])
        model.failure = lambda wave: None
        await runs.encode(model, [text(2, 5)])

    run_executor(
        scenario,
        on_begin=lambda n_bytes: told.append(n_bytes),
        on_end=lambda n_tokens, seconds: told.append(n_tokens),
    )
    assert told[:5] == [700, 0, 700, 0, 500]


# --- refused allocations --------------------------------------------------------------------


@pytest.mark.parametrize("message", [NO_ARENA, ARENA, "std::bad_alloc", "bad allocation"])
def test_a_refused_allocation_is_known_by_its_message(message: str):
    """ONNX Runtime has no class of its own for it."""
    assert is_allocation_failure(RuntimeError(message))


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
    assert not is_allocation_failure(RuntimeError(message))


@pytest.mark.parametrize("message", [NO_ARENA, ARENA])
@pytest.mark.parametrize("exact", [True, False])
def test_vectors_after_a_recovery_are_those_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, exact: bool
):
    """Bit for bit where the server promises that, else but for what packing moves."""
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
        call = await queued(runs, model, *texts)
        runs.set_limits(limits(threads=2))
        np.testing.assert_allclose(await call, plain, rtol=0, atol=0 if exact else 1e-6)

    with opened(small_settings(tmp_path, file, threads=2, exact=exact)) as model:
        plain = model.encode(texts)
        monkeypatch.setattr(Runner, "attend", fails_at_times)
        run_executor(scenario, allowed=PAUSED, room_timeout_s=LONG_S, telemetry=telemetry)

    counts = recoveries(telemetry)
    assert counts["retried"] >= 2
    assert (counts["recovered"] > 0, counts["failed"]) == (True, 0)


def test_no_thread_of_the_engine_is_left_behind_in_a_wave_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It would still work with bindings that the next try hands to others."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    texts = [np.arange(104, 104 + TINY.context)] * 3  # a unit for each thread
    attend, all_at_work = Runner.attend, threading.Barrier(3)
    failed, ended = threading.Event(), threading.Event()

    def attend_or_fail(self: Runner, *arrays: np.ndarray) -> None:
        if not failed.is_set():
            all_at_work.wait(DEADLINE_S)
        _, failing, lasting = model._engine._runners
        if self is failing:
            failed.set()
            raise RuntimeError(NO_ARENA)
        assert failed.wait(DEADLINE_S)
        for _ in range(100 if self is lasting else 1):
            attend(self, *arrays)
        if self is lasting:
            ended.set()

    with opened(small_settings(tmp_path, file, threads=3)) as model:
        monkeypatch.setattr(Runner, "attend", attend_or_fail)
        with pytest.raises(EncodeMemoryError):
            model.encode(texts)
        assert ended.is_set()


def test_a_closed_model_has_no_memory_to_give_back(tmp_path: Path):
    """Idle models are closed for want of memory, which may be just what a run waits for too."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    settings = small_settings(tmp_path, file, threads=1)
    model = open_model(settings, lambda done_bytes, total_bytes: None)
    model.close()

    model.release_memory()


# Takes all memory that there is below a limit, so that the next allocation is refused.
STARVING = """
import json, resource, sys
from pathlib import Path
import numpy as np
from app.encoder.graph import Kernel
from tests.small_models import TINY, opened, small_settings

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
wave = [np.arange(104, 104 + TINY.context)] * 16
with opened(small_settings(folder, file, threads=1)) as model:
    runner = model._engine._runners[0]
    before = model.encode(wave)
    found = {
        "attend": starved(lambda: runner.attend(rows[:1024], rows, rows)),
        "transform": starved(lambda: runner.transform(0, Kernel.PLAIN, rows, rows)),
        "encode": starved(lambda: model.encode(wave)),
        "same": bool((model.encode(wave) == before).all()),
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
    assert is_allocation_failure(RuntimeError(found["transform"][2]))
    assert found["encode"][:2] == ["app.errors", "EncodeMemoryError"]
    assert found["same"]
