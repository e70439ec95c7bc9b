"""When refused work may come back: one after the other, to its own place, and for no longer.

The queue holds as much as drains in QUEUE_S, and it is full: every list that comes is refused.
"""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy.admission import Permit
from plimsoll.policy.backlog import RATE_TOKENS, STRETCH, UNMEASURED_S
from plimsoll.policy.costs import CHARACTERS_PER_TOKEN, Demand
from plimsoll.policy.decision import Decision, Outcome
from plimsoll.policy.governor import Governor
from plimsoll.policy.priority import QUERY_TOKENS, Priority
from plimsoll.policy.return_times import (
    GRACE_S,
    HEEDED_S,
    MOST_PLACES,
    MOST_TOLD_S,
    SPREAD_RATIO,
    Place,
    ReturnTimes,
    told_s,
    wait_s,
)
from tests.fakes import FakeClock

TOKENS_PER_S, QUEUE_S = 1000.0, 30.0
QUEUE_TOKENS = round(TOKENS_PER_S * QUEUE_S)
LIST_TOKENS = 2000
LIST_S = LIST_TOKENS / TOKENS_PER_S


@dataclass
class Bench:
    """A governor with a full queue, whose engine has shown how fast it is."""

    clock: FakeClock = field(default_factory=FakeClock)
    is_measured: bool = True

    def __post_init__(self) -> None:
        self.governor = Governor(self.clock, budget_bytes=1 << 30, cores=2, queue_s=QUEUE_S)
        for _ in range(100 if self.is_measured else 0):
            self.governor.admission.end_run(RATE_TOKENS, RATE_TOKENS / TOKENS_PER_S)
        self.backlog = self.governor.admission.backlog
        self.full = Permit()
        self.fill(self.backlog.queue_limit_tokens)

    def fill(self, n_tokens: int) -> None:
        """So many tokens of lists wait."""
        self.governor.admission.reserve(self.full, _list(n_tokens))

    def pass_time(self, seconds: float) -> None:
        """The engine works meanwhile."""
        self.clock.now_s += seconds
        done = round(seconds * TOKENS_PER_S)
        self.governor.admission.note_done(self.full, done)

    def send(self, n_tokens: int = LIST_TOKENS, permit: Permit | None = None) -> Decision:
        """A list comes: the door, and then what its tokens come to. It leaves if it is refused."""
        permit = permit or Permit()
        decision = self.governor.enter(
            permit, asks_breaker=True, size=CHARACTERS_PER_TOKEN * n_tokens
        )
        if decision.outcome is Outcome.ADMIT:
            decision = self.governor.renew(permit, _list(n_tokens))
        if decision.outcome is not Outcome.ADMIT:
            self.governor.leave(permit)
        return decision


def _list(n_tokens: int) -> Demand:
    return Demand(n_tokens, held_bytes=0, priority=Priority.BULK)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- how a client is told -------------------------------------------------------------------


@given(st.floats(0, 1e9), st.floats(0, 1))
def test_what_is_told_is_never_too_soon_and_hardly_later(seconds: float, chance: float):
    """A client that comes a second too soon has lost one of two retries."""
    told = told_s(seconds, chance)

    assert 1 <= told <= MOST_TOLD_S
    assert told >= min(seconds, MOST_TOLD_S)
    assert told <= max(1, math.ceil(seconds * (1 + SPREAD_RATIO)))
    # What every client heeds stays so.
    assert told <= HEEDED_S or seconds > HEEDED_S


def test_those_who_are_refused_together_come_back_apart():
    """Over a tenth of the time, whole seconds."""
    assert {told_s(45, number / 100) for number in range(101)} == set(range(45, 51))


@pytest.mark.parametrize(
    ("room_s", "first_s", "again_s"),
    [(12.5, 12.5, 12.5), (60, 60, 60), (61, 30.5, 61), (120, 60, 120), (130, 120, 120)],
)
def test_what_two_heeded_waits_reach_is_told_so(room_s: float, first_s: float, again_s: float):
    """Half of the clients ignore 61 s, and two retries of them are over within two seconds."""
    assert wait_s(room_s, in_two=True) == first_s
    assert wait_s(room_s, in_two=False) == again_s


# --- one after the other --------------------------------------------------------------------


def test_each_one_refused_is_told_a_later_time_than_the_one_before(bench: Bench):
    """All told the same, they would come back together and be refused together."""
    bench.fill(QUEUE_TOKENS + LIST_TOKENS)
    told = [bench.send().retry_after_s for _ in range(20)]

    assert told == pytest.approx([LIST_S * number for number in range(1, 21)])


def test_what_is_told_is_when_there_is_room_for_it(bench: Bench):
    """Not a moment of hope: who comes then is let in, without a second refusal."""
    bench.fill(QUEUE_TOKENS + LIST_TOKENS)
    backs_s = [bench.clock.now_s + bench.send().retry_after_s for _ in range(10)]

    for back_s in backs_s:
        bench.pass_time(back_s - bench.clock.now_s)
        assert bench.send().outcome is Outcome.ADMIT
    assert len(bench.backlog.returns) == 0


def test_those_who_come_later_do_not_take_the_room_of_those_who_wait(bench: Bench):
    """Else a stream of newcomers would keep out for ever who does as it is told."""
    bench.fill(QUEUE_TOKENS + 1)
    first = bench.send()
    bench.pass_time(first.retry_after_s / 2)
    newcomer = bench.send(n_tokens=LIST_TOKENS + 1)

    assert newcomer.outcome is Outcome.QUEUE_FULL
    assert newcomer.retry_after_s >= LIST_S


def test_who_comes_back_in_time_takes_its_own_place(bench: Bench):
    """Counted twice, its work would send those behind it away for longer than there is work."""
    bench.fill(QUEUE_TOKENS + 70_000)
    far = bench.send()  # 70 s off, so half of that is told
    later = bench.send(n_tokens=LIST_TOKENS + 1)
    assert far.retry_after_s == pytest.approx(35)
    bench.pass_time(35)
    back = bench.send()

    assert len(bench.backlog.returns) == 2
    assert back.retry_after_s == pytest.approx(35)
    assert later.room_s == pytest.approx(70 + LIST_S)
    assert bench.backlog.returns.ahead(None, of_queries=False).bulk == 2 * LIST_TOKENS + 1


def test_who_is_refused_again_keeps_its_place_before_others(bench: Bench):
    """The engine has become slower: order is what is left of the promise."""
    bench.fill(QUEUE_TOKENS + 1000)
    bench.send()
    bench.send(n_tokens=LIST_TOKENS + 1)
    bench.fill(2 * QUEUE_TOKENS + 1000)
    bench.clock.now_s += 1
    back = bench.send()

    assert back.outcome is Outcome.QUEUE_FULL
    # Without those behind it.
    assert back.room_s == pytest.approx((QUEUE_TOKENS + 1000) / TOKENS_PER_S)


def test_a_promise_is_kept_also_past_the_limit_but_not_without_end(bench: Bench):
    """Predictions err; a client has few retries. Twice the queue is the most."""
    bench.fill(QUEUE_TOKENS + 1000)
    bench.send()
    bench.clock.now_s += 1
    bench.fill(STRETCH * QUEUE_TOKENS)

    assert bench.send(n_tokens=LIST_TOKENS + 1).outcome is Outcome.QUEUE_FULL
    assert bench.send().outcome is Outcome.ADMIT


# --- who is known again ---------------------------------------------------------------------


def test_a_list_of_the_same_size_that_comes_too_soon_is_another_one(bench: Bench):
    """Lists of a job are often alike; only the time tells them apart."""
    bench.fill(QUEUE_TOKENS + 10_000)
    bench.send()
    bench.pass_time(1)
    bench.send()

    assert len(bench.backlog.returns) == 2


def test_of_two_alike_the_one_that_comes_first_takes_the_first_place(bench: Bench):
    """Which is which does not matter: they are as large."""
    bench.fill(QUEUE_TOKENS + 1000)
    bench.send()
    bench.send()
    bench.pass_time(3)

    assert [bench.send().outcome for _ in range(2)] == [Outcome.ADMIT] * 2
    assert len(bench.backlog.returns) == 0


def test_who_sends_as_much_as_another_client_does_not_take_its_place(bench: Bench):
    """A promise is one client's; who has none stands behind those who have."""
    refused, other = object(), object()
    bench.fill(QUEUE_TOKENS + 1000)
    for client in (refused, other):  # neither is new: each has something in the queue already
        bench.governor.admission.reserve(Permit(client=client), _list(1))
    back_s = bench.send(permit=Permit(client=refused)).retry_after_s
    bench.pass_time(back_s)

    assert bench.send(permit=Permit(client=other)).outcome is Outcome.QUEUE_FULL
    assert bench.send(permit=Permit(client=refused)).outcome is Outcome.ADMIT


def test_a_place_ends_when_its_client_has_not_come(bench: Bench):
    """Who gave up must not turn away others."""
    bench.fill(QUEUE_TOKENS + 10_000)
    back_s = bench.send().retry_after_s
    bench.clock.now_s += told_s(back_s, 1.0) + GRACE_S
    assert len(bench.backlog.returns) == 1
    bench.clock.now_s += 0.1
    assert len(bench.backlog.returns) == 0


def test_a_client_that_hangs_up_after_it_came_back_has_no_place_any_more(bench: Bench):
    """Its place would count for as long as the server runs."""
    bench.fill(QUEUE_TOKENS + 1000)
    bench.send()
    bench.pass_time(1)
    permit = Permit()
    bench.governor.enter(permit, asks_breaker=True, size=CHARACTERS_PER_TOKEN * LIST_TOKENS)
    assert permit.place is not None
    bench.governor.leave(permit)

    assert len(bench.backlog.returns) == 0


def test_the_size_that_is_said_first_is_what_a_request_is_known_by(bench: Bench):
    """A large body is refused before it is read; by its texts it would be another request."""
    bench.fill(STRETCH * QUEUE_TOKENS + 1000)
    bulk = Priority.BULK
    refused = bench.governor.enter(Permit(), asks_breaker=False, priority=bulk, size=70_000)
    assert refused.outcome is Outcome.QUEUE_FULL
    bench.pass_time(refused.retry_after_s)
    permit = Permit()
    bench.governor.enter(permit, asks_breaker=False, priority=bulk, size=70_000)
    place = permit.place
    bench.governor.enter(permit, asks_breaker=True, size=60_000)
    assert bench.governor.renew(permit, _list(12_000)).outcome is Outcome.ADMIT

    assert place is not None
    assert len(bench.backlog.returns) == 0


def test_what_is_not_known_by_a_size_leaves_no_place(bench: Bench):
    """It could never come back to it."""
    bench.fill(10 * QUEUE_TOKENS)
    refused = bench.governor.enter(Permit(), asks_breaker=True, priority=Priority.BULK)

    assert refused.outcome is Outcome.QUEUE_FULL
    assert not refused.keeps_place
    assert bench.send().keeps_place
    assert len(bench.backlog.returns) == 1  # the list's, which has a size


def test_only_so_many_places_are_remembered():
    """A flood of refused requests must not take memory and time of its own."""
    returns = ReturnTimes(FakeClock())
    for number in range(MOST_PLACES + 10):
        returns.expect(Place(number + 1), Priority.BULK, 1, room_s=9, back_s=9)

    assert len(returns) == MOST_PLACES


# --- who is let in all the same -------------------------------------------------------------


def test_an_idle_engine_lets_anyone_in(bench: Bench):
    """Those who are to come back may be late, or never come."""
    bench.fill(QUEUE_TOKENS + 10_000)
    for _ in range(50):
        bench.send()
    bench.governor.leave(bench.full)

    assert bench.send(n_tokens=LIST_TOKENS + 1).outcome is Outcome.ADMIT


def test_a_query_is_let_in_however_many_lists_were_refused(bench: Bench):
    """Requests take turns, so its own comes within one round of what waits."""
    bench.fill(10 * QUEUE_TOKENS)
    for _ in range(100):
        bench.send()
    decision = bench.governor.renew(Permit(), Demand(1, 0))
    assert decision.outcome is Outcome.ADMIT


@pytest.mark.parametrize(
    ("n_tokens", "outcome"),
    [(QUERY_TOKENS, Outcome.ADMIT), (QUERY_TOKENS + 1, Outcome.QUEUE_FULL)],
)
def test_lists_of_short_texts_do_not_turn_a_query_away(
    bench: Bench, n_tokens: int, outcome: Outcome
):
    """A list may be small enough to count as interactive, and sixty of them fill the queue."""
    other = Permit()
    bench.governor.admission.reserve(other, Demand(QUEUE_TOKENS + 200, 0))

    assert bench.governor.renew(Permit(), Demand(n_tokens, 0)).outcome is outcome


def test_queries_alone_fill_the_queue_too():
    """Nothing is without end."""
    bench = Bench()
    other = Permit()
    bench.governor.admission.reserve(other, Demand(STRETCH * QUEUE_TOKENS + 200, 0))

    assert bench.governor.renew(Permit(), Demand(1, 0)).outcome is Outcome.QUEUE_FULL


def test_before_any_rate_is_known_one_should_ask_again_soon():
    """By a rate that is a guess, the first crowd of a fast server would sleep for a minute."""
    bench = Bench(is_measured=False)
    bench.fill(20 * bench.backlog.queue_limit_tokens)
    refused = bench.send()
    assert refused.room_s > 60
    assert refused.retry_after_s == UNMEASURED_S
    unsized = bench.governor.enter(Permit(), asks_breaker=True, priority=Priority.BULK)
    assert (unsized.outcome, unsized.retry_after_s) == (Outcome.QUEUE_FULL, UNMEASURED_S)

    bench.clock.now_s += UNMEASURED_S
    assert bench.send().retry_after_s > UNMEASURED_S


def test_explaining_leaves_no_place(bench: Bench):
    """Who only asks does not mean to come."""
    bench.fill(QUEUE_TOKENS + 10_000)
    decision = bench.governor.explain(_list(LIST_TOKENS))

    assert decision.outcome is Outcome.QUEUE_FULL
    assert decision.retry_after_s == pytest.approx(10)
    assert len(bench.backlog.returns) == 0
