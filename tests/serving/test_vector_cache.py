"""The vector cache: bounded, exact, and the first to go under pressure."""

import asyncio
from typing import Any

import numpy as np
import pytest

from plimsoll.models.pool import ModelPool
from plimsoll.policy.lines import CACHE_SHARES
from plimsoll.policy.priority import Priority
from plimsoll.serving.executor import RunExecutor
from plimsoll.serving.reclaim import Reclaim
from plimsoll.serving.vector_cache import ENTRY_BYTES, CachedEncoder, VectorCache
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import HIDDEN, metric
from tests.serving.test_executor import WatchedModel, expected, run_executor, text
from tests.serving.test_reclaim import AskedExecutor

ROW = np.ones(HIDDEN, np.float32)
ROW_BYTES = ROW.nbytes + ENTRY_BYTES


def cache_of(n_rows: int, telemetry: Telemetry | None = None) -> VectorCache:
    """A cache with room for so many rows."""
    return VectorCache((telemetry or Telemetry("test")).engine, most_bytes=n_rows * ROW_BYTES)


async def encode(
    encoder: CachedEncoder, model: Any, *texts: np.ndarray, dimensions: int = HIDDEN
) -> tuple[list[np.ndarray], list[int]]:
    """Rows, and the tokens of the texts that were told of."""
    told: list[int] = []
    rows = await encoder.encode(model, texts, dimensions, told.append, Priority.BULK)
    await asyncio.sleep(0)
    return rows, told


def test_a_text_that_comes_again_does_not_run_again_and_its_row_is_the_same():
    """Bit for bit; and what a request does with its row does not reach the next one."""
    telemetry, model = Telemetry("test"), WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        encoder = CachedEncoder(runs, cache_of(10, telemetry), telemetry.engine)
        first, _ = await encode(encoder, model, text(1), text(2, 5))
        again, told = await encode(encoder, model, text(2, 5), text(3), text(1))
        np.testing.assert_array_equal(again, [expected(text(2, 5)), expected(text(3)), first[0]])
        assert sorted(told) == [3, 3, 5]
        again[0].fill(0)
        (last,), _ = await encode(encoder, model, text(2, 5))
        np.testing.assert_array_equal(last, expected(text(2, 5)))

    run_executor(scenario, telemetry=telemetry)
    assert sum(model.run_sizes) == 3
    page = telemetry.render().decode()
    assert metric(page, 'plimsoll_vectors_total{source="cache"}') == 3
    assert metric(page, 'plimsoll_vectors_total{source="engine"}') == 3
    assert metric(page, "plimsoll_vector_cache_bytes") == 3 * ROW_BYTES


def test_other_dimensions_are_another_row():
    """The fingerprint is part of the key: vectors of two spaces are never mixed up."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        encoder = CachedEncoder(runs, cache_of(10), Telemetry("test").engine)
        for dimensions in (HIDDEN, HIDDEN - 1):
            (row,), _ = await encode(encoder, model, text(1), dimensions=dimensions)
            np.testing.assert_array_equal(row, expected(text(1), dimensions))

    run_executor(scenario)


def test_rows_of_another_form_are_neither_kept_nor_found():
    """A pooled vector in the place of a unit one would spoil every distance."""
    model = WatchedModel()

    async def scenario(runs: RunExecutor) -> None:
        encoder = CachedEncoder(runs, cache_of(10), Telemetry("test").engine)
        options = (HIDDEN, lambda n_tokens: None, Priority.BULK)
        (unit,) = await encoder.encode(model, [text(1)], *options)
        (pooled,) = await encoder.encode(model, [text(1)], *options, "pooled")
        (states,) = await encoder.encode(model, [text(1)], *options, "tokens")
        (again,) = await encoder.encode(model, [text(1)], *options)
        np.testing.assert_array_equal(again, unit)
        np.testing.assert_allclose(pooled / np.linalg.norm(pooled), unit)
        assert (pooled[0], states.shape) == (3, (3, HIDDEN))

    run_executor(scenario)
    assert sum(model.run_sizes) == 3


def test_the_row_that_was_asked_for_longest_ago_goes_first():
    """What is popular stays; and the bytes are never more than allowed."""
    cache = cache_of(2)
    for key in (b"a", b"b"):
        cache.keep(key, ROW)
    assert cache.find(b"a") is not None
    cache.keep(b"c", ROW)

    assert [cache.find(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.n_bytes == 2 * ROW_BYTES


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_cannot_be_sent_are_not_kept(value: float):
    """The text may have better luck the next time."""
    cache = cache_of(2)
    cache.keep(b"a", np.full(HIDDEN, value, np.float32))

    assert (cache.find(b"a"), cache.n_bytes) == (None, 0)


def test_a_row_of_a_run_does_not_keep_the_whole_run_in_memory():
    """Rows are views of one array; its bytes would not be counted."""
    cache, run = cache_of(2), np.ones((64, HIDDEN), np.float32)
    cache.keep(b"a", run[3])

    (kept,) = cache._rows.values()
    assert kept.base is None


@pytest.mark.parametrize("is_short", [False, True])
@pytest.mark.parametrize("step", range(len(CACHE_SHARES)))
def test_it_is_given_up_step_by_step_and_wholly_while_requests_wait(step: int, is_short: bool):
    """A vector can be computed again; without room a request is refused."""
    cache, telemetry = cache_of(100), Telemetry("test")
    for n in range(100):
        cache.keep(bytes([n]), ROW)
    models = ModelPool([], max_open=1, load_wait_s=None)
    executor: Any = AskedExecutor()
    reclaim = Reclaim(models, executor, telemetry.pressure, cache)
    reclaim.look(step, is_short=is_short, idle_s=0)

    share = 0.0 if is_short else CACHE_SHARES[step]
    assert cache.n_bytes == share * 100 * ROW_BYTES
    reclaim.look(0, is_short=False, idle_s=0)
    cache.keep(b"new", ROW)
    assert cache.find(b"new") is not None
