"""The queue of texts: which run next, how long the first one waits for room, which are left out.

A text takes a byte a token, and texts of one model run together; no thread, no clock but a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy.priority import BULK_SHARE, Priority, WaitingTokens
from plimsoll.policy.runs import (
    GROWN_TOKENS,
    LEAST_RUN_TOKENS,
    MOST_TEXTS,
    RunLimits,
)
from plimsoll.policy.scheduler import Plan
from plimsoll.policy.text_queue import Next, TextQueue

PLENTY = 1 << 40
TIMEOUT_S = 5.0
WEIGHTS = {"small": 10, "large": 1000}
N_LAYERS = 4


@dataclass(eq=False)
class Text:
    n_tokens: int = 10
    model: str = "small"
    queued_at_s: float = 0.0
    is_dropped: bool = False
    request: object = "a list"
    client: object = None
    priority: Priority = Priority.BULK


def short(n_tokens: int = 10, **fields: Any) -> Text:
    return Text(n_tokens, priority=Priority.INTERACTIVE, request=object(), **fields)


def limits(
    *,
    parallelism: int = 8,
    room_bytes: int = PLENTY,
    is_paused: bool = False,
    resident_bytes: int = PLENTY,
    short_tokens: int = GROWN_TOKENS,
    own_layer_tokens: int | None = None,
) -> RunLimits:
    return RunLimits(
        Plan(parallelism, 1, 0, (), ()),
        room_bytes,
        is_paused=is_paused,
        resident_bytes=resident_bytes,
        short_tokens=short_tokens,
        own_layer_tokens=own_layer_tokens or short_tokens,
    )


NO_ROOM, PAUSED = limits(room_bytes=0), limits(is_paused=True)
STARVING = pytest.mark.parametrize("starving", [NO_ROOM, PAUSED], ids=["no room", "breaker open"])


def queue_of(*texts: Text) -> TextQueue[Text]:
    queue: TextQueue[Text] = TextQueue(
        run_bytes=lambda first, lengths, limits: sum(lengths),
        weights_bytes=lambda text: WEIGHTS[text.model],
        n_layers=lambda text: N_LAYERS,
        belong_together=lambda first, text: first.model == text.model,
        room_timeout_s=TIMEOUT_S,
    )
    for text in texts:
        queue.put(text, text.priority)
    return queue


def drained(queue: TextQueue[Text], allowed: RunLimits) -> list[Sequence[Text]]:
    """Every run until nothing waits."""
    runs = []
    while len(queue):
        runs.append(queue.next(allowed, 0.0).texts)
        assert runs[-1], "the queue neither ran nor ended"
    return runs


# --- what runs together ---------------------------------------------------------------------


def test_an_empty_queue_waits_for_a_change_alone():
    """Asking again each second would wake a processor for nothing."""
    assert queue_of().next(limits(), 0.0) == Next()


def test_texts_of_one_request_run_in_the_order_they_came():
    """A text that others pass for ever would never be answered."""
    texts = [Text(1 + n % 7) for n in range(3 * MOST_TEXTS)]
    runs = drained(queue_of(*texts), limits())

    assert [text for run in runs for text in run] == texts
    assert all(len(run) <= MOST_TEXTS for run in runs)


def test_texts_of_another_model_end_a_run():
    """A run has the weights of one model; those behind it do not pass the ones between."""
    texts = [Text(model=model) for model in ("small", "small", "large", "small")]

    assert drained(queue_of(*texts), limits()) == [texts[:2], texts[2:3], texts[3:]]


def test_lists_for_two_models_run_in_turn_and_each_in_whole_runs():
    """In turn text by text each run would have one text, and read all weights for it."""
    small, large = ([Text(model=m, request=m) for _ in range(4)] for m in ("small", "large"))
    texts = [text for pair in zip(small, large, strict=True) for text in pair]

    assert drained(queue_of(*texts), limits(short_tokens=5)) == [
        small[:2], large[:2], small[2:], large[2:],
    ]  # fmt: skip


def test_the_text_that_raises_is_taken_out_and_no_other():
    """The executor fails what a turn went wrong with: queries must not fail for a list's text."""
    queue = queue_of(Text(model="unknown"), *(short() for _ in range(3)))
    paused = []
    for _ in range(3):
        paused += queue.next(limits(short_tokens=10), 0.0).texts
    with pytest.raises(KeyError):
        queue.next(limits(), 0.0)
    late = short(queued_at_s=9.0)
    queue.put(late, Priority.INTERACTIVE)

    (taken,) = queue.take_first()

    assert taken.model == "unknown"
    assert queue.next(limits(), 9.0).texts == [late]


def test_a_run_takes_no_more_than_there_is_room_for():
    """Room may have become less since the texts were admitted."""
    texts = [Text(40), Text(40)]
    queue = queue_of(*texts)

    assert queue.next(limits(room_bytes=40), 0.0).texts == texts[:1]
    assert queue.next(limits(room_bytes=40), 0.0).texts == texts[1:]


@pytest.mark.parametrize(("model", "n_tokens"), [("small", 256), ("large", GROWN_TOKENS)])
def test_runs_are_larger_where_the_pages_of_the_models_weights_are_dropped(
    model: str, n_tokens: int
):
    """It is the first text's model that says whether its weights may stay."""
    queue = queue_of(*(Text(64, model) for _ in range(MOST_TEXTS)))
    allowed = limits(parallelism=1, resident_bytes=WEIGHTS["small"])

    assert sum(text.n_tokens for text in queue.next(allowed, 0.0).texts) == n_tokens


@pytest.mark.parametrize(("client", "layer_tokens"), [("a client", 64), (None, 32)])
def test_each_layer_of_a_run_of_bulk_is_short(client: object, layer_tokens: int):
    """A query is let in after it; and few runs are faster than many.

    The server's own work is in less of a hurry than a client who waits for a list.
    """
    queue = queue_of(*(Text(32, client=client) for _ in range(MOST_TEXTS)))

    found = queue.next(limits(short_tokens=64, own_layer_tokens=32), 0.0)

    assert found.lets_in
    assert sum(text.n_tokens for text in found.texts) == N_LAYERS * layer_tokens


def test_runs_of_queries_are_short_too():
    """Some are answered while others run: all in one run would leave the engine idle after it."""
    asked = [short(64) for _ in range(4)]

    assert drained(queue_of(*asked), limits(short_tokens=128)) == [asked[:2], asked[2:]]


# --- two classes ----------------------------------------------------------------------------


def test_a_short_text_runs_before_a_list_that_came_first_and_not_together_with_it():
    """Its client waits for it; texts of the list in the same run would make it wait longer."""
    listed, asked = [Text() for _ in range(5)], short()
    queue = queue_of(*listed, asked)

    assert [list(run) for run in drained(queue, limits())] == [[asked], listed]


def test_requests_of_one_class_are_served_in_turn():
    """A second list would otherwise begin only when the first one ends."""
    first, second = ([Text(request=name) for _ in range(3)] for name in "ab")
    queue = queue_of(*first, *second)
    (run,) = drained(queue, limits())

    assert list(run) == [text for pair in zip(first, second, strict=True) for text in pair]


@given(
    short_lengths=st.lists(st.integers(1, 256), min_size=1, max_size=20),
    bulk_lengths=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    short_tokens=st.integers(128, 1024),
)
def test_neither_class_starves_the_other(
    short_lengths: list[int], bulk_lengths: list[int], short_tokens: int
):
    """However many short texts come, a run of bulk follows as soon as the last one was no more than
    its share; and a short text waits for one run of bulk at most."""
    queue, allowed = queue_of(), limits(short_tokens=short_tokens)
    n_missing = dict.fromkeys(Priority, MOST_TEXTS + 1)
    passed_tokens, bulk_tokens, n_bulk = 0, LEAST_RUN_TOKENS, 0
    for n in range(30):
        # As many as a run can take, and one more: so both classes always wait.
        for _ in range(n_missing[Priority.INTERACTIVE]):
            queue.put(short(short_lengths[n % len(short_lengths)]), Priority.INTERACTIVE)
        for _ in range(n_missing[Priority.BULK]):
            queue.put(Text(bulk_lengths[n % len(bulk_lengths)]), Priority.BULK)
        texts = queue.next(allowed, 0.0).texts
        (priority,) = {text.priority for text in texts}
        is_due = bulk_tokens <= BULK_SHARE * (passed_tokens + bulk_tokens)
        assert priority is (Priority.BULK if is_due else Priority.INTERACTIVE)
        n_missing = {each: len(texts) if each is priority else 0 for each in Priority}
        n_tokens = sum(text.n_tokens for text in texts)
        if priority is Priority.BULK:
            assert passed_tokens  # not two runs of bulk, one after the other
            passed_tokens, bulk_tokens, n_bulk = 0, n_tokens, n_bulk + 1
        else:
            passed_tokens += n_tokens
    assert n_bulk


@given(
    lengths=st.lists(st.integers(1, 256), min_size=1, max_size=20),
    bulk_tokens=st.integers(128, 2000),
    short_tokens=st.integers(128, 1024),
)
def test_what_is_let_in_leaves_bulk_its_share(
    lengths: list[int], bulk_tokens: int, short_tokens: int
):
    """However many queries come: a run that lets them in without end would never reach its own."""
    queue, allowed = queue_of(Text(bulk_tokens)), limits(short_tokens=short_tokens)
    assert queue.next(allowed, 0.0).lets_in
    for n in range(30 * MOST_TEXTS):
        queue.put(short(lengths[n % len(lengths)]), Priority.INTERACTIVE)
    n_tokens = 0
    for n_passed in range(1, N_LAYERS):
        passed_ratio = n_passed / N_LAYERS
        most_tokens = (1 / BULK_SHARE - 1) * passed_ratio * bulk_tokens
        while texts := queue.let_in(allowed, passed_ratio):
            assert n_tokens < most_tokens
            n_tokens += sum(text.n_tokens for text in texts)
        assert n_tokens >= most_tokens or not len(queue)  # nothing waits that might have run


@pytest.mark.parametrize("allowed", [NO_ROOM, PAUSED], ids=["no room", "breaker open"])
def test_nothing_is_let_in_where_nothing_may_run(allowed: RunLimits):
    """It would take memory that is not there, beside that of the run under way."""
    queue = queue_of(Text(100), short())
    queue.next(limits(), 0.0)
    bulk = queue.next(limits(), 0.0)
    queue.put(short(), Priority.INTERACTIVE)

    assert bulk.lets_in
    assert not queue.let_in(allowed, 0.5)
    assert queue.let_in(limits(), 0.5)


def test_what_passed_while_no_bulk_waited_is_not_owed_to_it():
    """An hour of queries would let the next list stand before all of them."""
    queue, allowed = queue_of(), limits(short_tokens=128)
    for _ in range(100):
        queue.put(short(100), Priority.INTERACTIVE)
        queue.next(allowed, 0.0)
    asked = short(100)
    queue.put(Text(100), Priority.BULK)
    queue.put(asked, Priority.INTERACTIVE)

    assert queue.next(allowed, 0.0).texts == [asked]


def test_a_text_that_finds_no_room_holds_up_its_own_class_alone_and_for_its_time_alone():
    """A long document may wait for memory that a query does not need; it is told in time."""
    document = Text(1000)
    queue, tight = queue_of(document), limits(room_bytes=100, short_tokens=128)
    queue.next(tight, 0.0)
    refused_at_s = None
    for second in range(10):
        for _ in range(10):
            queue.put(short(100), Priority.INTERACTIVE)
            found = queue.next(tight, float(second))
            if found.refused:
                assert found.refused is document
                refused_at_s = refused_at_s or second
            else:
                assert len(found.texts) == 1

    assert refused_at_s == TIMEOUT_S


# --- no room --------------------------------------------------------------------------------


@STARVING
def test_the_first_text_is_refused_once_it_has_waited_long_enough(starving: RunLimits):
    """Its client is told how to come back; until then the queue says how long is left."""
    text = Text()
    queue = queue_of(text)

    assert queue.next(starving, 100.0) == Next(wait_s=TIMEOUT_S)
    assert queue.next(starving, 103.0) == Next(wait_s=TIMEOUT_S - 3)
    assert queue.next(starving, 105.0) == Next(refused=text)
    assert queue.next(starving, 105.0) == Next()


def test_room_that_came_in_between_starts_the_wait_anew():
    """The next text has not waited for room while others ran."""
    texts = [Text(), Text()]
    queue = queue_of(*texts)
    queue.next(NO_ROOM, 100.0)
    assert queue.next(limits(room_bytes=10), 104.0).texts == texts[:1]

    assert queue.next(NO_ROOM, 104.5) == Next(wait_s=TIMEOUT_S)


def test_an_emptied_queue_forgets_that_it_starved():
    """A text that comes an hour later would be refused at once."""
    text = Text()
    queue = queue_of(text)
    queue.next(NO_ROOM, 100.0)
    text.is_dropped = True
    queue.next(NO_ROOM, 101.0)
    queue.put(Text(queued_at_s=200.0), Priority.BULK)

    assert queue.next(NO_ROOM, 200.0) == Next(wait_s=TIMEOUT_S)


def test_texts_that_have_waited_for_the_same_room_are_refused_together():
    """One after another, each with a timeout of its own, the last would wait for minutes."""
    texts = [Text(queued_at_s=100.0) for _ in range(3)]
    queue = queue_of(*texts)
    queue.next(NO_ROOM, 100.0)

    assert [queue.next(NO_ROOM, 105.0).refused for _ in texts] == texts


def test_a_text_that_came_later_has_its_own_time_to_wait():
    """It is not refused for the patience of the one before it."""
    first, later = Text(queued_at_s=100.0), Text(queued_at_s=104.0)
    queue = queue_of(first, later)
    queue.next(NO_ROOM, 100.0)

    assert queue.next(NO_ROOM, 105.0).refused is first
    assert queue.next(NO_ROOM, 105.0) == Next(wait_s=TIMEOUT_S - 1)
    assert queue.next(NO_ROOM, 109.0).refused is later


@STARVING
def test_a_server_that_stops_lets_no_text_wait_for_room(starving: RunLimits):
    """It may never come, and an operator who stops a server waits seconds, not minutes."""
    texts = [Text(), Text()]
    queue = queue_of(*texts)

    assert [queue.next(starving, 0.0, is_stopping=True).refused for _ in texts] == texts
    assert queue.next(starving, 0.0, is_stopping=True) == Next()


def test_a_server_that_stops_still_runs_what_fits():
    """A deployment is no reason to fail requests."""
    text = Text()

    assert queue_of(text).next(limits(), 0.0, is_stopping=True).texts == [text]


# --- dropped texts --------------------------------------------------------------------------


def test_dropped_texts_are_left_out_wherever_they_stand():
    """Their clients have gone; those around them still share a run."""
    texts = [Text(is_dropped=n in (0, 2, 4)) for n in range(5)]
    queue = queue_of(*texts)

    assert queue.next(limits(), 0.0).texts == [texts[1], texts[3]]
    assert queue.next(limits(), 0.0) == Next()


def test_a_text_that_is_dropped_while_its_run_is_cut_makes_no_empty_run():
    """A client may hang up from another thread at any moment; an engine that is given no text
    would fail for nothing."""
    leaving, staying = Text(), Text(model="large")

    def run_bytes(first: Text, lengths: Sequence[int], limits: RunLimits) -> int:
        leaving.is_dropped = True
        return 0

    queue: TextQueue[Text] = TextQueue(
        run_bytes=run_bytes,
        weights_bytes=lambda text: 0,
        n_layers=lambda text: N_LAYERS,
        belong_together=lambda first, text: first.model == text.model,
        room_timeout_s=TIMEOUT_S,
    )
    queue.put(leaving, Priority.BULK)
    queue.put(staying, Priority.BULK)

    assert queue.next(limits(), 0.0).texts == [staying]


def test_a_dropped_text_at_the_head_takes_no_time_from_the_next():
    """It is not the one that starves."""
    gone, text = Text(is_dropped=True), Text(queued_at_s=100.0)

    assert queue_of(gone, text).next(NO_ROOM, 100.0) == Next(wait_s=TIMEOUT_S)


@given(
    texts=st.lists(
        st.builds(Text, st.integers(1, 3000), st.sampled_from(["small", "large"]), st.just(0.0),
                  st.booleans()),
        max_size=150,
    ),
    parallelism=st.integers(1, 8),
)  # fmt: skip
def test_every_text_leaves_the_queue_once_and_its_tokens_with_it(
    texts: list[Text], parallelism: int
):
    """The gauge of waiting tokens is what an operator sees of the queue; it must come to zero."""
    queue = queue_of(*texts)
    assert (len(queue), queue.n_tokens) == (len(texts), sum(text.n_tokens for text in texts))
    runs = []
    while found := queue.next(limits(parallelism=parallelism), 0.0).texts:
        runs.append(found)

    assert [text for run in runs for text in run] == [each for each in texts if not each.is_dropped]
    assert all(len({text.model for text in run}) == 1 for run in runs)
    assert (len(queue), queue.n_tokens) == (0, 0)


@given(
    waiting=st.lists(st.integers(1, LEAST_RUN_TOKENS), max_size=20),
    bulk=st.lists(st.integers(1, LEAST_RUN_TOKENS), max_size=60),
    own=st.lists(st.integers(1, LEAST_RUN_TOKENS), min_size=1, max_size=20),
)
def test_a_query_waits_for_no_more_than_admission_foretells(
    waiting: list[int], bulk: list[int], own: list[int]
):
    """Both go by the same share; a client is told by the one what it gets from the other."""
    mine = object()
    queue = queue_of(
        *(Text(n_tokens) for n_tokens in bulk),
        *(short(n_tokens) for n_tokens in waiting),
        *(Text(n, priority=Priority.INTERACTIVE, request=mine) for n in own),
    )
    foretold = WaitingTokens(sum(waiting), sum(bulk)).before(
        Priority.INTERACTIVE, sum(own), layer_tokens=LEAST_RUN_TOKENS
    )
    allowed = limits(short_tokens=LEAST_RUN_TOKENS)
    n_before, n_left = 0.0, len(own)
    while n_left:
        found = queue.next(allowed, 0.0)
        if not found.lets_in:
            n_left -= sum(text.request is mine for text in found.texts)
            n_before += sum(text.n_tokens for text in found.texts if text.request is not mine)
            continue
        for n_passed in range(1, N_LAYERS + 1):
            n_before += sum(text.n_tokens for text in found.texts) / N_LAYERS if n_left else 0
            while n_passed < N_LAYERS and (texts := queue.let_in(allowed, n_passed / N_LAYERS)):
                n_left -= sum(text.request is mine for text in texts)
                n_before += sum(text.n_tokens for text in texts if text.request is not mine)

    assert n_before <= foretold
