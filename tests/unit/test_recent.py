"""What is remembered of requests for the status page: little, bounded, and no text."""

import numpy as np
import pytest

from app.api.recent import MOST_ERRORS, MOST_REPLIES, WINDOW_S, RecentRequests
from tests.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def recent(clock: FakeClock) -> RecentRequests:
    return RecentRequests(clock, clock)


def test_there_is_no_latency_before_the_first_answer(recent: RecentRequests):
    """None is not fast."""
    latency = recent.latency()

    assert (latency.n_replies, latency.p50_s, latency.p99_s) == (0, None, None)


@pytest.mark.parametrize("n_replies", [1, 2, 3, 99, 100, 101])
def test_latency_is_the_quantile_that_numpy_gives(recent: RecentRequests, n_replies: int):
    """Off by one, the slowest answer of a hundred would be hidden or shown as the usual one."""
    took_s = np.random.default_rng(n_replies).exponential(size=n_replies)
    for seconds in took_s:
        recent.note_reply("dense", 200, float(seconds))

    latency = recent.latency()

    assert latency.n_replies == n_replies
    assert latency.p50_s == np.quantile(took_s, 0.50, method="inverted_cdf")
    assert latency.p99_s == np.quantile(took_s, 0.99, method="inverted_cdf")


def test_latency_forgets_what_is_older_than_a_minute(recent: RecentRequests, clock: FakeClock):
    """The page is to show that it has become better."""
    recent.note_reply("dense", 200, 30.0)
    clock.now_s += WINDOW_S
    recent.note_reply("sparse", 200, 1.0)
    assert recent.latency().n_replies == 2

    clock.now_s += 1.0

    assert recent.latency().p99_s == 1.0


def test_a_busy_minute_takes_no_more_memory_than_a_quiet_one(recent: RecentRequests):
    """What watches memory must not grow with the load."""
    for _ in range(MOST_REPLIES + 10):
        recent.note_reply("dense", 200, 0.01)

    assert recent.latency().n_replies == MOST_REPLIES
    assert recent.counts == {"dense": MOST_REPLIES + 10, "sparse": 0, "error": 0}


def test_refusals_count_but_their_speed_does_not(recent: RecentRequests):
    """A server that refuses everything at once must not look fast."""
    recent.note_reply("dense", 200, 2.0)
    recent.note_reply("none", 429, 0.001)
    recent.note_reply("none", 500, 0.001)

    assert recent.counts == {"dense": 1, "sparse": 0, "error": 2}
    assert recent.latency().p50_s == 2.0


def test_who_only_looks_is_not_counted(recent: RecentRequests):
    """The page itself asks every other second."""
    recent.note_reply("none", 200, 0.001)

    assert set(recent.counts.values()) == {0}
    assert recent.latency().n_replies == 0


def test_errors_come_newest_first_and_only_so_many(recent: RecentRequests):
    """Who looks wants to know what went wrong last."""
    for number in range(MOST_ERRORS + 5):
        recent.note_error(503, f"code_{number}", "a message")

    codes = [error.code for error in recent.errors]
    assert len(codes) == MOST_ERRORS
    assert codes[:2] == [f"code_{MOST_ERRORS + 4}", f"code_{MOST_ERRORS + 3}"]


def test_a_flood_of_one_error_does_not_wash_away_the_others(
    recent: RecentRequests, clock: FakeClock
):
    """Thousands of 429 in a row say one thing; what came before them may be their cause."""
    recent.note_error(500, "internal_error", "the first")
    for _ in range(1000):
        clock.now_s += 1
        recent.note_error(429, "queue_full", f"at {clock.now_s:.0f}")

    flood, cause = recent.errors
    assert (flood.code, flood.n_times, flood.at_s) == ("queue_full", 1000, clock.now_s)
    assert flood.message == f"at {clock.now_s:.0f}"
    assert (cause.message, cause.n_times) == ("the first", 1)
