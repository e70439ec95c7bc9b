"""What a client may take: exact waits, debts, and those that are refused together."""

import heapq
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.errors import (
    ClientLimitError,
    ConcurrencyLimitError,
    RequestRateError,
    TokenRateError,
)
from plimsoll.policy.client_limits import MOST_TURNS_S, ClientAccount, ClientLimits
from tests.fakes import FakeClock

RATES = st.floats(0.05, 500)


def account_of(clock: FakeClock, **limits: float) -> ClientAccount:
    return ClientAccount(ClientLimits(**limits), clock)


def refusal(account: ClientAccount) -> ClientLimitError | None:
    """Why a request that ends at once is refused, None where it is not."""
    try:
        account.leave(account.enter())
    except ClientLimitError as error:
        return error
    return None


# --- requests a second ----------------------------------------------------------------------


@given(per_s=RATES, pauses=st.lists(st.floats(0, 5), max_size=80))
def test_no_more_than_the_rate_comes_in_and_a_wait_that_is_told_suffices(
    per_s: float, pauses: list[float]
):
    """Whatever a client does: a burst of a second's worth, or of one, then the rate."""
    clock = FakeClock()
    account = account_of(clock, requests_per_s=per_s)
    came_in: list[float] = []
    for pause_s in pauses:
        clock.now_s += pause_s
        error = refusal(account)
        if error is not None:
            assert isinstance(error, RequestRateError)
            assert error.retry_after_s > 0
            clock.now_s += error.retry_after_s + 1e-6
            assert refusal(account) is None
        came_in.append(clock.now_s)

    burst = max(1, per_s)
    for first, begun_s in enumerate(came_in):
        for last in range(first, len(came_in)):
            assert last - first + 1 <= burst + per_s * (came_in[last] - begun_s) + 1e-3


def test_a_wait_is_no_longer_than_it_must_be():
    """Half a second before there is room, there is none; a client that obeys loses nothing."""
    clock = FakeClock()
    account = account_of(clock, requests_per_s=0.5)
    assert refusal(account) is None

    assert refusal(account).retry_after_s == pytest.approx(2)
    clock.now_s += 1.99
    assert isinstance(refusal(account), RequestRateError)
    clock.now_s += 0.01
    assert refusal(account) is None


@pytest.mark.parametrize("n_callers", [30, 60, 200])
def test_callers_that_are_refused_together_all_get_in_when_they_are_told(n_callers: int):
    """Told the same second, all but the first few would be refused until their retries are spent:
    clients come back twice and then give up."""
    clock = FakeClock()
    account = account_of(clock, requests_per_s=10)
    n_refused = [0] * n_callers
    due = [(clock.now_s, caller) for caller in range(n_callers)]
    while due:
        clock.now_s, caller = heapq.heappop(due)
        if (error := refusal(account)) is not None:
            n_refused[caller] += 1
            # As the header has it: whole seconds.
            heapq.heappush(due, (clock.now_s + ceil(error.retry_after_s), caller))

    assert max(n_refused) == 1
    assert n_refused.count(0) == 10


def test_a_client_that_does_not_wait_cannot_send_itself_away_for_ever():
    """It asks a thousand times; when there is room again it is let in, whatever it was told."""
    clock = FakeClock()
    account = account_of(clock, requests_per_s=1)
    assert refusal(account) is None
    told = [refusal(account).retry_after_s for _ in range(1000)]

    assert max(told) <= MOST_TURNS_S
    clock.now_s += 1
    assert refusal(account) is None


# --- tokens a second ------------------------------------------------------------------------


def test_tokens_beyond_the_rate_are_waited_out_before_the_next_request():
    """What a request takes is known once it runs: it runs, and the debt is told to the second."""
    clock = FakeClock()
    account = account_of(clock, tokens_per_s=100)
    begun_s = account.enter()
    account.charge(1200)
    account.leave(begun_s)

    error = refusal(account)
    assert isinstance(error, TokenRateError)
    assert error.retry_after_s == pytest.approx(11)
    assert "100 tokens a second" in str(error)
    assert "next 11 s" in str(error)
    clock.now_s += 10.9
    assert refusal(account) is not None
    clock.now_s += 0.1 + 1e-6
    assert refusal(account) is None


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=50), per_s=st.floats(1, 1000))
def test_a_client_that_obeys_gets_its_rate_of_tokens_and_no_more(sizes: list[int], per_s: float):
    """Over any time, but for one second's worth and the last request."""
    clock = FakeClock()
    account = account_of(clock, tokens_per_s=per_s)
    began_s = clock.now_s
    for n_tokens in sizes:
        if (error := refusal(account)) is not None:
            clock.now_s += error.retry_after_s + 1e-6
        begun_s = account.enter()
        account.charge(n_tokens)
        account.leave(begun_s)

    assert sum(sizes[:-1]) <= per_s * (clock.now_s - began_s + 1) + 1


def test_requests_that_are_refused_for_tokens_come_back_one_behind_the_other():
    """Each as long behind the last as this client's requests take of its rate."""
    clock = FakeClock()
    account = account_of(clock, tokens_per_s=100)
    for _ in range(50):  # so that 200 is typical
        begun_s = account.enter()
        account.charge(200)
        account.leave(begun_s)
        clock.now_s += 2
    begun_s = account.enter()
    account.charge(200)
    account.leave(begun_s)

    waits_s = [refusal(account).retry_after_s for _ in range(3)]
    assert waits_s == pytest.approx([1, 3, 5], abs=0.1)


# --- requests under way ---------------------------------------------------------------------


def test_so_many_requests_may_be_under_way_and_one_more_when_one_ends():
    """A refused one takes no place."""
    account = account_of(FakeClock(), concurrency=2)
    first = account.enter()
    account.enter()
    for _ in range(3):
        assert isinstance(refusal(account), ConcurrencyLimitError)

    account.leave(first)
    assert refusal(account) is None
    assert account.n_under_way == 1


def test_the_time_until_a_place_is_free_goes_by_how_long_requests_take():
    """The oldest of them ends after what was typical; those refused before come first."""
    clock = FakeClock()
    account = account_of(clock, concurrency=2)
    for _ in range(50):  # of eight seconds each
        begun_s = account.enter()
        clock.now_s += 8
        account.leave(begun_s)
    account.enter()
    clock.now_s += 3
    account.enter()

    waits_s = [refusal(account).retry_after_s for _ in range(3)]
    assert waits_s == pytest.approx([5, 9, 13], rel=0.01)


# --- all of them ----------------------------------------------------------------------------


def test_without_limits_a_client_takes_as_much_as_it_wants():
    """As before there were any."""
    account = account_of(FakeClock())
    for _ in range(10_000):
        account.enter()
        account.charge(10**9)
    assert refusal(account) is None


def test_what_is_refused_by_one_limit_is_not_counted_by_another():
    """A client at its concurrency would spend its rate on being refused."""
    clock = FakeClock()
    account = account_of(clock, concurrency=1, requests_per_s=2)
    begun_s = account.enter()
    for _ in range(5):
        assert isinstance(refusal(account), ConcurrencyLimitError)
    account.leave(begun_s)

    assert refusal(account) is None
    assert isinstance(refusal(account), RequestRateError)


def test_limits_that_are_exchanged_count_at_once():
    """A file of keys that is changed is read again while its clients are at work."""
    clock = FakeClock()
    account = account_of(clock, requests_per_s=1)
    assert [refusal(account) is None for _ in range(2)] == [True, False]

    account.keep_to(ClientLimits(requests_per_s=100))
    assert refusal(account) is None
