"""What is remembered of requests for the status page: little, bounded, and no text."""

import numpy as np
import pytest

from plimsoll.api.operations.recent import (
    BIN_RATIO,
    MOST_ERRORS,
    MOST_SOURCES,
    N_PERIODS,
    OTHERS,
    PERIOD_S,
    WINDOW_PERIODS,
    RecentRequests,
    Source,
)
from plimsoll.telemetry.current_request import CurrentRequest, serving
from tests.fakes import FakeClock

EMBED = Source("/embed", "a model")
WITHIN_A_BIN = BIN_RATIO**0.5 - 1 + 1e-9


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def recent(clock: FakeClock) -> RecentRequests:
    return RecentRequests(clock, clock)


# --- latency --------------------------------------------------------------------------------


def test_there_is_no_latency_before_the_first_answer(recent: RecentRequests):
    """None is not fast."""
    latency = recent.latency()

    assert (latency.n_replies, latency.p50_s, latency.p95_s, latency.p99_s) == (0, None, None, None)


@pytest.mark.parametrize("n_replies", [1, 2, 3, 99, 100, 101])
def test_latency_is_the_quantile_that_numpy_gives(recent: RecentRequests, n_replies: int):
    """Off by one, the slowest answer of a hundred would be hidden or shown as the usual one."""
    took_s = 0.001 + np.random.default_rng(n_replies).exponential(size=n_replies)
    for seconds in took_s:
        recent.note_reply(EMBED, "dense", 200, float(seconds))

    latency = recent.latency()

    assert latency.n_replies == n_replies
    for share, found in ((0.50, latency.p50_s), (0.95, latency.p95_s), (0.99, latency.p99_s)):
        true = np.quantile(took_s, share, method="inverted_cdf")
        assert found == pytest.approx(true, rel=WITHIN_A_BIN)


def test_latency_forgets_what_is_older_than_a_minute(recent: RecentRequests, clock: FakeClock):
    """The page is to show that it has become better."""
    recent.note_reply(EMBED, "dense", 200, 30.0)
    clock.now_s += (WINDOW_PERIODS - 1) * PERIOD_S
    recent.note_reply(EMBED, "sparse", 200, 1.0)
    assert recent.latency().n_replies == 2

    clock.now_s += PERIOD_S

    assert recent.latency().p99_s == pytest.approx(1.0, rel=WITHIN_A_BIN)


def test_an_answer_in_no_time_is_still_an_answer(recent: RecentRequests):
    """A clock may stand still for a moment."""
    recent.note_reply(EMBED, "dense", 200, 0.0)

    assert recent.latency().n_replies == 1


# --- traffic --------------------------------------------------------------------------------


def test_traffic_is_counted_by_period_route_and_model(recent: RecentRequests, clock: FakeClock):
    """Which route or model is slow or fails is what an operator asks next."""
    other = Source("/rank", "another")
    for _ in range(3):
        recent.note_reply(EMBED, "dense", 200, 0.2)
    clock.now_s += 2 * PERIOD_S
    recent.note_reply(EMBED, "none", 503, 9.0)
    recent.note_reply(other, "dense", 200, 0.4)

    together, embed, rank = recent.traffic()

    assert (together.route, embed.route, rank.route) == ("all", "/embed", "/rank")
    assert (embed.model, rank.model) == ("a model", "another")
    assert len(together.requests) == len(together.p95_s) == N_PERIODS
    assert together.requests[-3:] == [3, 0, 2]
    assert embed.requests[-3:] == [3, 0, 1]
    assert embed.errors[-3:] == [0, 0, 1]
    assert embed.p95_s[-3:] == [pytest.approx(0.2, rel=WITHIN_A_BIN), None, None]
    assert rank.p95_s[-1] == pytest.approx(0.4, rel=WITHIN_A_BIN)


def test_traffic_forgets_what_is_older_than_it_shows(recent: RecentRequests, clock: FakeClock):
    """Also where nothing has come since."""
    recent.note_reply(EMBED, "dense", 200, 0.2)
    clock.now_s += N_PERIODS * PERIOD_S

    [together] = recent.traffic()

    assert sum(together.requests) == 0


def test_a_busy_minute_takes_no_more_memory_than_a_quiet_one(recent: RecentRequests):
    """What watches memory must not grow with the load, nor with what clients ask for."""
    for number in range(10_000):
        recent.note_reply(Source(f"/{number}", None), "dense", 200, 0.01 * (number % 7))

    assert recent.latency().n_replies == 10_000
    sources = recent.traffic()[1:]
    assert len(sources) == MOST_SOURCES + 1
    assert sources[0].route == OTHERS.route
    assert recent.counts == {"dense": 10_000, "sparse": 0, "error": 0}


def test_refusals_count_but_their_speed_does_not(recent: RecentRequests):
    """A server that refuses everything at once must not look fast."""
    recent.note_reply(EMBED, "dense", 200, 2.0)
    recent.note_reply(EMBED, "none", 429, 0.001)
    recent.note_reply(EMBED, "none", 500, 0.001)

    assert recent.counts == {"dense": 1, "sparse": 0, "error": 2}
    assert recent.latency().p50_s == pytest.approx(2.0, rel=WITHIN_A_BIN)
    together = recent.traffic()[0]
    assert (together.errors[-1], together.refused[-1], together.failed[-1]) == (2, 1, 1)


def test_who_only_looks_is_not_counted(recent: RecentRequests):
    """The page itself asks every other second."""
    recent.note_reply(Source("/health", None), "none", 200, 0.001)

    assert set(recent.counts.values()) == {0}
    assert recent.latency().n_replies == 0
    assert len(recent.traffic()) == 1


# --- errors ---------------------------------------------------------------------------------


def test_failures_come_before_refusals_and_the_newest_first(recent: RecentRequests):
    """A 500 among a thousand 429 is what must be seen."""
    for status, code in ((500, "first"), (429, "refused"), (503, "later"), (404, "missing")):
        recent.note_error(status, code, "a message")

    assert [error.code for error in recent.errors] == ["later", "first", "missing", "refused"]


def test_only_so_many_errors_are_kept(recent: RecentRequests):
    """Codes are few, but a list that grows is a leak."""
    for number in range(MOST_ERRORS + 5):
        recent.note_error(503, f"code_{number}", "a message")

    codes = [error.code for error in recent.errors]
    assert len(codes) == MOST_ERRORS
    assert codes[:2] == [f"code_{MOST_ERRORS + 4}", f"code_{MOST_ERRORS + 3}"]


def test_a_flood_of_one_error_does_not_wash_away_the_others(
    recent: RecentRequests, clock: FakeClock
):
    """Thousands of 429 say one thing, also where others come between them."""
    recent.note_error(500, "internal_error", "the first")
    for number in range(1000):
        clock.now_s += 1
        with serving(CurrentRequest(f"request-{number}")):
            recent.note_error(429, "queue_full", f"at {clock.now_s:.0f}")
        recent.note_error(404, "http_404", "Not Found")

    cause, missing, flood = recent.errors
    assert (flood.code, flood.n_times, flood.at_s) == ("queue_full", 1000, clock.now_s)
    assert flood.message == f"at {clock.now_s:.0f}"
    assert flood.request_id == "request-999"
    assert (cause.message, cause.n_times, cause.request_id) == ("the first", 1, None)
    assert missing.n_times == 1000
