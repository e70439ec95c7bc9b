"""Texts to ids, a step at a time: whose they are, what is reserved for them, what comes between.

Steps are those of a fake model, cut as a test says, or of a real tokenizer.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.encoder.tokenizer import STEP_CHARACTERS, TokenizedText
from plimsoll.errors import MemoryPressureError, PlimsollError, TooLargeError
from plimsoll.policy.costs import ID_BYTES, IDS_STEP_BYTES
from plimsoll.serving.tasks import EmbedTask, TextFailure, Truncation
from plimsoll.serving.tokens import RequestTokens, count_tokens, tokenize
from tests.fakes import DEADLINE_S, FakeModel
from tests.pressure import BUDGET, FakeMemory, assert_nothing_is_held, serving, take_room
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic

LIMIT = FakeModel().traits.token_limit
# An empty text, one that is short, one at the limit, one over it.
TEXTS = st.sampled_from(["", "a ship", "a " * (LIMIT - 2), "a " * LIMIT])


class SteppingModel(FakeModel):
    """Comes to the end of so many texts in each of its steps, and of all others in the last."""

    def __init__(self, step_sizes: Sequence[int] = ()) -> None:
        super().__init__()
        self.step_sizes = step_sizes
        self.n_steps = 0
        self.stepping, self.may_step = threading.Event(), threading.Event()
        self.may_step.set()

    def tokenize_steps(
        self, texts: Sequence[str], input_type: str | None, cut: str = "end"
    ) -> Iterator[list[TokenizedText]]:
        ends = list(accumulate(self.step_sizes, initial=0))
        for start, end in zip(ends, [*ends[1:], len(texts)], strict=True):
            self.n_steps += 1
            self.stepping.set()
            assert self.may_step.wait(DEADLINE_S)
            yield self.tokenize(texts[start:end], input_type)


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


async def no_limit(lengths: Sequence[int]) -> None:
    """There is room for everything."""


# --- whose they are -------------------------------------------------------------------------


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=8),
    step_sizes=st.lists(st.integers(0, 3), max_size=6),
    truncate=st.booleans(),
)
def test_every_text_keeps_its_index_among_any_neighbours(
    thread: ThreadPoolExecutor, texts: list[str], step_sizes: list[int], truncate: bool
):
    """Empty ones, long ones, steps that end no text or many: one place off, and each text from
    there on would get its neighbour's vector."""
    model = SteppingModel(step_sizes)
    task = EmbedTask(texts, truncate=truncate)
    found = asyncio.run(tokenize(model, task, thread, no_limit))

    n_tokens = [len(text.split()) + 2 for text in texts]
    is_wanted = [n > 2 and (truncate or n <= LIMIT) for n in n_tokens]
    assert list(found.ids) == [index for index, wanted in enumerate(is_wanted) if wanted]
    for index, ids in found.ids.items():
        np.testing.assert_array_equal(ids, model.tokenize([texts[index]], None)[0].ids)
    assert [(failure.index, failure.code) for failure in found.failures] == [
        (index, "empty_text" if n_tokens[index] <= 2 else "too_long")
        for index, wanted in enumerate(is_wanted)
        if not wanted
    ]
    assert found.truncated == [
        Truncation(index, n, LIMIT) for index, n in enumerate(n_tokens) if truncate and n > LIMIT
    ]
    kept = [min(n, LIMIT) for n, wanted in zip(n_tokens, is_wanted, strict=True) if wanted]
    assert (found.lengths, found.n_tokens) == (kept, sum(kept))
    assert asyncio.run(count_tokens(model, task, thread)) == kept


def test_a_refused_text_says_what_is_wrong_with_it(thread: ThreadPoolExecutor):
    """With both numbers, so that a client knows how much to leave out."""
    task = EmbedTask(["", "a " * LIMIT], truncate=False)
    found = asyncio.run(tokenize(SteppingModel(), task, thread, no_limit))

    empty, long = found.failures
    assert "no tokens" in empty.message
    assert long == TextFailure(
        1,
        "too_long",
        f"the text has {LIMIT + 2} tokens and the limit is {LIMIT}; shorten it or let "
        "`truncate` cut it",
    )


# --- memory for them ------------------------------------------------------------------------


def test_memory_is_reserved_step_by_step(thread: ThreadPoolExecutor):
    """For what is there and will run; a step that ends no text needs nothing."""
    told: list[list[int]] = []

    async def reserve(lengths: Sequence[int]) -> None:
        told.append(list(lengths))

    model = SteppingModel([1, 0, 2, 0])
    asyncio.run(tokenize(model, EmbedTask(["a", "a a", "", "a a a"]), thread, reserve))

    assert told == [[3], [4], [5]]


def test_a_step_without_room_is_the_last_one(thread: ThreadPoolExecutor):
    """What the others would take is not there either."""
    refusal = MemoryPressureError("no room", retry_after_s=1)

    lengths_so_far: list[int] = []

    async def reserve(lengths: Sequence[int]) -> None:
        lengths_so_far.extend(lengths)
        if len(lengths_so_far) == 2:
            raise refusal

    model = SteppingModel([1] * 10)
    with pytest.raises(MemoryPressureError) as refused:
        asyncio.run(tokenize(model, EmbedTask(["a"] * 10), thread, reserve))

    assert refused.value is refusal
    assert model.n_steps == 2


def refused_with(
    model: SteppingModel, texts: list[str], *, budget_bytes: int, room_bytes: int
) -> Exception:
    """What a request ends in that finds so much room; nothing of it may be left."""
    with serving(model, memory=FakeMemory(budget_bytes, used_bytes=0)) as (server, client):
        free_bytes = server.core.governor.admission.room_for_run_bytes()
        other = take_room(server, free_bytes - room_bytes)

        async def ask() -> Exception:
            permit = server.core.gate.permit()
            with pytest.raises(PlimsollError) as refused:
                await server.core.service.embed(EmbedTask(texts), permit)
            permit.leave()
            return refused.value

        error = client.portal.call(ask)
        server.core.governor.leave(other)
        assert_nothing_is_held(server)
    assert model.runs == []
    return error


def test_ids_that_find_no_room_end_their_request_and_are_given_back():
    """For want of memory: the last thing to keep then is its own. Some of its texts had room."""
    texts = ["a " * (LIMIT - 2)] * 5000
    a_step = IDS_STEP_BYTES // (LIMIT * ID_BYTES)
    model = SteppingModel([1] * len(texts))
    error = refused_with(
        model, texts, budget_bytes=BUDGET, room_bytes=3 * IDS_STEP_BYTES + IDS_STEP_BYTES // 2
    )

    assert isinstance(error, MemoryPressureError)
    assert 3 * a_step < model.n_steps <= 4 * a_step


def test_a_request_that_could_never_fit_is_refused_before_all_of_it_is_tokenized():
    """A library of books would take minutes of the one thread that tokenizes, for a 413."""
    model = SteppingModel([1] * 1000)
    error = refused_with(model, ["a"] * 1000, budget_bytes=100_000, room_bytes=70_000)

    assert isinstance(error, TooLargeError)
    assert 10 < model.n_steps < 100


# --- what comes between ----------------------------------------------------------------------


def test_a_short_text_is_tokenized_between_the_steps_of_a_long_one(
    tmp_path: Path, thread: ThreadPoolExecutor
):
    """A book takes a second; no other request shall wait for that."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    order: list[str] = []

    async def scenario() -> list[RequestTokens]:
        async def ask(text: str) -> RequestTokens:
            found = await tokenize(model, EmbedTask([text]), thread, no_limit)
            order.append("end of " + ("long" if len(text) > STEP_CHARACTERS else "short"))
            return found

        return await asyncio.gather(ask("ship " * (4 * STEP_CHARACTERS)), ask("ship"))

    with opened(small_settings(tmp_path, file, threads=1)) as model:
        steps = model.tokenize_steps

        def watched(texts: Sequence[str], *how: str | None) -> Iterator[list[TokenizedText]]:
            for finished in steps(texts, *how):
                order.append("long" if len(texts[0]) > STEP_CHARACTERS else "short")
                yield finished

        model.tokenize_steps = watched  # type: ignore[method-assign]
        long, short = asyncio.run(scenario())
        (alone,) = model.tokenize(["ship"], None)

    assert order.count("long") >= 20
    assert order[: order.index("end of short")].count("long") < 5
    assert long.lengths == [TINY.context]
    np.testing.assert_array_equal(short.ids[0], alone.ids)


def test_nothing_more_is_tokenized_for_a_client_that_hung_up(thread: ThreadPoolExecutor):
    """Its step under way is the last."""
    model = SteppingModel([1] * 10)
    model.may_step.clear()

    async def scenario() -> None:
        call = asyncio.create_task(tokenize(model, EmbedTask(["a"] * 10), thread, no_limit))
        await asyncio.to_thread(model.stepping.wait, DEADLINE_S)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        model.may_step.set()
        assert await count_tokens(FakeModel(), EmbedTask(["a"]), thread) == [3]

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
    assert model.n_steps == 1
