"""Admission by its numbers: what may run, what waits, what is refused, and until when.

Sizes are small round numbers: with a budget of 1000 bytes the line lies at 700, and the server at
rest takes 100 of them.
"""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from plimsoll.policy.admission import Admission, Permit
from plimsoll.policy.backlog import FIRST_TOKENS_PER_S, LEAST_QUEUE_TOKENS, RATE_TOKENS
from plimsoll.policy.costs import NOTHING, Demand
from plimsoll.policy.decision import Decision, Outcome
from plimsoll.policy.floor import FLOOR_WINDOW_S, REST_WINDOW_S, SETTLED_AFTER_S
from plimsoll.policy.governor import Governor
from plimsoll.policy.lines import admission_ratio
from plimsoll.policy.priority import Priority, WaitingTokens
from plimsoll.policy.return_times import MOST_TOLD_S, told_s
from plimsoll.policy.runs import short_run_tokens
from tests.fakes import FakeClock

BUDGET, LINE, FLOOR = 1000, 700, 100
QUEUE_S = 100.0
QUEUE_TOKENS = round(FIRST_TOKENS_PER_S * QUEUE_S)


class Bench:
    """An admission, the governor that decides by it, its clock, and memory as it is measured."""

    def __init__(self, floor_bytes: int = FLOOR, queue_s: float = QUEUE_S) -> None:
        self.clock = FakeClock()
        self.governor = Governor(self.clock, budget_bytes=BUDGET, cores=2, queue_s=queue_s)
        self.admission = self.governor.admission
        self.admission.observe(floor_bytes, BUDGET)

    def observe(self, used_bytes: int, *, after_s: float = 0.0) -> None:
        self.clock.now_s += after_s
        self.admission.observe(used_bytes, BUDGET)

    def decide(self, demand: Demand) -> Decision:
        return self.governor.explain(demand)

    def outcome(self, demand: Demand) -> Outcome:
        return self.decide(demand).outcome

    def admit(self, demand: Demand) -> Permit:
        permit = Permit()
        assert self.governor.renew(permit, demand).outcome is Outcome.ADMIT
        return permit

    def hold(self, demand: Demand) -> Permit:
        """Reserve without asking."""
        permit = Permit()
        self.admission.reserve(permit, demand)
        return permit


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- the line -------------------------------------------------------------------------------


def test_a_peak_that_ends_at_the_line_is_admitted_and_one_byte_more_is_not(bench: Bench):
    """The line is the promise: nothing is predicted above it, and nothing below it is wasted."""
    assert bench.outcome(Demand(10, held_bytes=200, run_bytes=400)) is Outcome.ADMIT
    assert bench.outcome(Demand(10, held_bytes=200, run_bytes=401)) is not Outcome.ADMIT


def test_what_requests_hold_adds_up_and_runs_do_not(bench: Bench):
    """Runs follow each other, so the largest of them counts once."""
    bench.admit(Demand(10, held_bytes=50, run_bytes=300))
    bench.admit(Demand(10, held_bytes=50, run_bytes=200))

    assert bench.admission.held_bytes == 100
    assert bench.admission.run_bytes == 300
    assert bench.admission.predicted_bytes == FLOOR + 100 + 300


def test_a_run_below_the_largest_takes_no_room_and_a_larger_one_only_the_difference(bench: Bench):
    """Many requests with runs of one size cost what they hold, or a busy server would stand still.

    200 bytes are free beside floor, held bytes and the largest run.
    """
    bench.admit(Demand(10, held_bytes=100, run_bytes=300))

    assert bench.outcome(Demand(10, held_bytes=200, run_bytes=300)) is Outcome.ADMIT
    assert bench.outcome(Demand(10, held_bytes=201, run_bytes=300)) is Outcome.WAIT
    assert bench.outcome(Demand(10, held_bytes=0, run_bytes=500)) is Outcome.ADMIT
    assert bench.outcome(Demand(10, held_bytes=1, run_bytes=500)) is Outcome.WAIT


def test_a_request_that_has_ended_gives_its_room_back(bench: Bench):
    """What is kept by mistake is lost until a restart."""
    permit = bench.admit(Demand(10, held_bytes=200, run_bytes=400))
    assert bench.outcome(Demand(10, held_bytes=200)) is Outcome.WAIT

    bench.admission.release(permit)
    bench.admission.release(permit)

    assert bench.admission.held_bytes == bench.admission.run_bytes == 0
    assert bench.admission.backlog.queue_tokens == 0
    assert bench.outcome(Demand(10, held_bytes=200, run_bytes=400)) is Outcome.ADMIT


def test_what_a_permit_keeps_counts_beside_its_demand(bench: Bench):
    """A body is there while its texts are embedded, and both go with the request."""
    permit = bench.admit(Demand(10, held_bytes=100, run_bytes=50))
    bench.admission.keep(permit, 70)
    assert bench.admission.held_bytes == permit.held_bytes == 170
    bench.admission.keep(permit, 20)
    assert bench.admission.held_bytes == 120

    bench.admission.release(permit)
    assert bench.admission.held_bytes == 0


def test_a_renewed_reservation_takes_the_place_of_the_first(bench: Bench):
    """A body's reservation becomes that of its texts; both together would count twice."""
    permit = bench.admit(Demand(0, held_bytes=400))
    bench.admission.reserve(permit, Demand(30, held_bytes=100, run_bytes=50))

    assert bench.admission.predicted_bytes == FLOOR + 100 + 50
    assert bench.admission.backlog.queue_tokens == 30


def test_memory_in_use_beyond_all_accounts_counts_as_it_stands(bench: Bench):
    """What was given back on paper may still be in memory."""
    bench.admission.release(bench.admit(Demand(10, held_bytes=500)))
    bench.observe(600)

    assert bench.decide(Demand(10, 1)).headroom_bytes == LINE - 600


def test_a_run_may_take_what_the_line_leaves_beside_everything_held(bench: Bench):
    """The engine asks before each run; the reservation of runs is for it."""
    assert bench.admission.room_for_run_bytes() == LINE - FLOOR
    bench.admit(Demand(10, held_bytes=150, run_bytes=300))
    assert bench.admission.room_for_run_bytes() == LINE - FLOOR - 150


def test_a_limit_that_is_changed_under_way_holds_from_the_next_look(bench: Bench):
    """An orchestrator may shrink a container while it runs; there is then no negative room."""
    bench.admit(Demand(10, held_bytes=400, run_bytes=100))
    bench.admission.observe(600, 500)

    assert bench.admission.line_bytes == 350
    assert bench.admission.room_for_run_bytes() == 0
    assert bench.decide(Demand(10, 1)).headroom_bytes == 0


def test_where_rest_alone_is_above_the_line_the_line_moves_above_rest():
    """Small budgets work too: the server serves with a third of what is left to the breaker."""
    bench = Bench(floor_bytes=750)

    assert bench.admission.line_bytes == 800
    assert bench.outcome(Demand(10, held_bytes=0, run_bytes=50)) is Outcome.ADMIT
    assert bench.outcome(Demand(10, held_bytes=0, run_bytes=51)) is Outcome.TOO_LARGE


def test_a_byte_more_at_rest_never_opens_the_whole_budget():
    """It once did at 0.65: from one second to the next three times as much was admitted."""
    below, above = Bench(floor_bytes=649), Bench(floor_bytes=651)

    assert below.admission.line_bytes == pytest.approx(above.admission.line_bytes, abs=1)


# --- too large, or only at the moment -------------------------------------------------------


def test_what_an_idle_server_could_not_take_is_too_large_and_the_rest_waits(bench: Bench):
    """Waiting helps the one; the other has to be told its limit, or it comes back for ever."""
    bench.admit(Demand(10, held_bytes=300))

    fits_later = bench.decide(Demand(10, held_bytes=100, run_bytes=500))
    never_fits = bench.decide(Demand(10, held_bytes=100, run_bytes=501))

    assert fits_later.outcome is Outcome.WAIT
    assert never_fits.outcome is Outcome.TOO_LARGE
    assert never_fits.largest_bytes == LINE - FLOOR
    assert never_fits.headroom_bytes == LINE - FLOOR - 300


def test_memory_that_nothing_accounts_for_makes_a_request_wait_but_not_too_large(bench: Bench):
    """It may be gone in a moment; 413 would tell the client to give up."""
    bench.admit(Demand(10, held_bytes=100))
    bench.observe(600)

    assert bench.outcome(Demand(10, held_bytes=0, run_bytes=300)) is Outcome.WAIT


# --- the floor ------------------------------------------------------------------------------


def test_unaccounted_memory_raises_the_floor_for_as_long_as_it_is_believed(bench: Bench):
    """One sample between two runs must not make room that is gone with the next run."""
    bench.admit(Demand(10, held_bytes=100, run_bytes=200))
    bench.observe(550)
    assert bench.admission.floor_bytes == 250

    bench.observe(200, after_s=FLOOR_WINDOW_S)
    assert bench.admission.floor_bytes == 250
    bench.observe(200, after_s=0.01)
    assert bench.admission.floor_bytes == FLOOR


def test_the_floor_is_the_most_within_the_window(bench: Bench):
    """Falling evidence leaves in the order it came, rising evidence takes the place of lower."""
    bench.admit(Demand(10, held_bytes=0))
    for used in (300, 500, 400, 200):
        bench.observe(used, after_s=1.0)
    assert bench.admission.floor_bytes == 500

    bench.observe(150, after_s=FLOOR_WINDOW_S - 1.5)
    assert bench.admission.floor_bytes == 400
    bench.observe(600)
    assert bench.admission.floor_bytes == 600


@given(
    looks=st.lists(
        st.tuples(st.integers(0, 1000), st.floats(0, FLOOR_WINDOW_S)), min_size=1, max_size=30
    )
)
def test_the_floor_is_what_a_scan_of_the_window_finds(looks: list[tuple[int, float]]):
    """The evidence is kept short; the plain way, all samples of the window, is the oracle."""
    bench = Bench(floor_bytes=0)
    bench.admit(Demand(0, held_bytes=0))
    seen: list[tuple[float, int]] = []
    for used, after_s in looks:
        bench.observe(used, after_s=after_s)
        seen.append((bench.clock.now_s, used))

    since_s = bench.clock.now_s - FLOOR_WINDOW_S
    assert bench.admission.floor_bytes == max(used for at_s, used in seen if at_s >= since_s)


def test_rest_is_measured_only_once_everything_has_settled(bench: Bench):
    """Right after a request its memory is still there: that is not the server at rest."""
    bench.admission.release(bench.admit(Demand(10, held_bytes=100)))

    bench.observe(FLOOR - 20, after_s=SETTLED_AFTER_S - 0.01)
    assert bench.admission.idle_floor_bytes == FLOOR
    bench.observe(FLOOR - 10, after_s=0.01)
    assert bench.admission.idle_floor_bytes == FLOOR - 10


def test_rest_is_the_least_of_some_minutes(bench: Bench):
    """An open breaker makes the server rest with memory high; that must not move its lines."""
    bench.observe(800, after_s=10.0)
    assert bench.admission.idle_floor_bytes == FLOOR

    bench.observe(300, after_s=REST_WINDOW_S)
    assert bench.admission.idle_floor_bytes == 300


def test_rest_is_not_measured_while_anything_is_admitted(bench: Bench):
    """A single long request is no rest either."""
    bench.admit(Demand(10, held_bytes=100))
    bench.observe(500, after_s=100.0)

    assert bench.admission.idle_floor_bytes == FLOOR


def test_settled_memory_ends_older_evidence(bench: Bench):
    """What is measured at rest is certain; what was guessed before it is not needed any more."""
    permit = bench.admit(Demand(10, held_bytes=0))
    bench.observe(600)
    bench.admission.release(permit)
    bench.observe(FLOOR - 10, after_s=SETTLED_AFTER_S)

    assert bench.admission.floor_bytes == FLOOR - 10


def test_rest_is_never_said_to_be_more_than_what_is_in_use():
    """Memory at the end of a load is no rest, and a server that is busy from then on never rests.

    Its requests would be refused as too large until the first pause.
    """
    bench = Bench(floor_bytes=650)
    bench.hold(Demand(10, held_bytes=0))
    bench.observe(120)

    assert bench.admission.idle_floor_bytes == 120
    assert bench.outcome(Demand(10, held_bytes=0, run_bytes=500)) is not Outcome.TOO_LARGE


# --- rest measured anew ---------------------------------------------------------------------


def test_a_model_that_has_opened_moves_rest_at_once(bench: Bench):
    """Rest is the least of five minutes: behind the old one the line would count the new model as
    memory that requests took, and refuse them until those minutes have passed."""
    bench.admission.measure_rest_anew(400)

    assert bench.admission.idle_floor_bytes == 400
    assert bench.decide(Demand(0, 1)).headroom_bytes == LINE - 400
    bench.observe(380, after_s=SETTLED_AFTER_S)
    assert bench.admission.idle_floor_bytes == 380
    bench.observe(390, after_s=1.0)
    assert bench.admission.idle_floor_bytes == 380


def test_memory_of_the_loading_is_no_evidence_afterwards(bench: Bench):
    """It counted as memory that nothing accounts for; now it is the model's."""
    bench.admit(Demand(10, held_bytes=0))
    bench.observe(650)
    bench.admission.measure_rest_anew(300)

    assert bench.admission.floor_bytes == 300


def test_a_model_that_has_opened_is_not_at_rest_yet(bench: Bench):
    """What its loading left behind is still there: a second later it would pass for rest."""
    bench.observe(FLOOR, after_s=100.0)
    bench.admission.measure_rest_anew(400)
    bench.observe(900, after_s=SETTLED_AFTER_S - 0.01)

    assert bench.admission.idle_floor_bytes == 400


def test_nothing_is_too_large_by_a_rest_that_has_not_settled(bench: Bench):
    """A model that opens again beside a neighbour's memory: that may go, and 413 says never."""
    demand = Demand(10, held_bytes=0, run_bytes=100)
    bench.admission.measure_rest_anew(750)
    assert bench.outcome(demand) is not Outcome.TOO_LARGE
    assert bench.decide(demand).headroom_bytes == 0

    bench.observe(750, after_s=SETTLED_AFTER_S)
    assert bench.outcome(demand) is Outcome.TOO_LARGE


def without_a_pause(bench: Bench, used_bytes: int, seconds: float) -> None:
    """A request a second, each with memory of its own, and never time to settle."""
    for _ in range(round(seconds)):
        permit = bench.hold(Demand(0, held_bytes=5))
        bench.observe(used_bytes + 5, after_s=0.5)
        bench.admission.release(permit)
        bench.observe(used_bytes, after_s=0.5)


def test_what_a_server_without_a_pause_takes_all_the_time_moves_its_lines(bench: Bench):
    """A second model had opened under traffic that never paused: behind the old line nothing found
    room, and the breaker's closing line lay below what the server rests at."""
    bench.admission.measure_rest_anew(680)
    without_a_pause(bench, 690, seconds=REST_WINDOW_S / 2)
    without_a_pause(bench, 680, seconds=1)
    without_a_pause(bench, 690, seconds=REST_WINDOW_S / 2 - 2)
    assert bench.admission.rest_ratio == FLOOR / BUDGET

    without_a_pause(bench, 690, seconds=2)
    assert bench.admission.rest_ratio == 0.68
    assert bench.admission.line_bytes > LINE
    without_a_pause(bench, 300, seconds=1)  # the model has closed
    assert bench.admission.rest_ratio == 0.3
    bench.observe(FLOOR, after_s=SETTLED_AFTER_S)
    assert bench.admission.rest_ratio == FLOOR / BUDGET


def test_what_stays_above_the_breakers_line_moves_none(bench: Bench):
    """It is what the breaker is there for, however long it lasts."""
    without_a_pause(bench, 940, seconds=2 * REST_WINDOW_S)

    assert bench.admission.rest_ratio == FLOOR / BUDGET


def test_a_run_that_is_always_under_way_moves_no_line(bench: Bench):
    """It is accounted for: requests would be let in above the line for its sake."""
    bench.hold(Demand(10, held_bytes=100, run_bytes=400))
    for _ in range(round(2 * REST_WINDOW_S)):
        bench.observe(FLOOR + 500, after_s=1.0)

    assert bench.admission.rest_ratio == FLOOR / BUDGET


# --- how long nothing was asked -------------------------------------------------------------


def test_the_server_is_idle_from_its_last_request_on(bench: Bench):
    """What runs left behind is given back when none comes for a while."""
    permit = bench.admit(Demand(10, held_bytes=0))
    bench.observe(FLOOR, after_s=5.0)
    assert bench.admission.idle_s == 0
    bench.admission.release(permit)
    assert bench.admission.idle_s == 0
    bench.clock.now_s += 3
    bench.admission.release(permit)  # a second time it is no request that ends

    assert bench.admission.idle_s == 3


# --- the run under way ----------------------------------------------------------------------


def test_a_model_that_opens_while_memory_is_above_the_breakers_line_makes_that_no_rest(
    bench: Bench,
):
    """The breaker's own lines would rise above what it is there to keep away."""
    bench.admission.measure_rest_anew(940)
    bench.observe(940, after_s=SETTLED_AFTER_S)

    assert bench.admission.idle_floor_bytes == FLOOR
    assert bench.admission.rest_ratio == FLOOR / BUDGET


def test_what_fills_the_group_while_a_model_settles_is_no_rest(bench: Bench):
    """It opened below the breaker's line; what came then would raise that very line."""
    bench.admission.measure_rest_anew(400)
    bench.observe(940, after_s=SETTLED_AFTER_S)
    assert (bench.admission.idle_floor_bytes, bench.admission.rest_ratio) == (400, FLOOR / BUDGET)

    bench.observe(940, after_s=REST_WINDOW_S)
    assert bench.admission.rest_ratio == 0.94


def test_a_model_that_has_just_opened_moves_no_line(bench: Bench):
    """What its conversion used is still there, and would let requests in above the line."""
    bench.admission.measure_rest_anew(650)
    assert bench.admission.idle_floor_bytes == 650
    assert bench.admission.line_bytes == LINE

    bench.observe(650, after_s=SETTLED_AFTER_S)
    assert bench.admission.line_bytes == round(1000 * admission_ratio(0.65)) > LINE


def test_a_run_of_many_texts_is_no_floor(bench: Bench):
    """A run may fill all the room there is; taken for memory that nothing accounts for, it would
    leave none to the next runs and requests for the length of the window."""
    bench.admit(Demand(10, held_bytes=100, run_bytes=50))
    bench.admission.begin_run(400)
    bench.observe(FLOOR + 100 + 400)

    assert bench.admission.floor_bytes == FLOOR
    assert bench.admission.predicted_bytes == FLOOR + 100 + 400
    assert bench.admission.room_for_run_bytes() == LINE - FLOOR - 100


def test_a_request_whose_run_follows_the_one_under_way_is_admitted(bench: Bench):
    """Under a stream of short texts a long one would otherwise never find its moment."""
    bench.admit(Demand(10, held_bytes=100, run_bytes=50))
    bench.admission.begin_run(400)
    bench.observe(FLOOR + 100 + 400)

    assert bench.outcome(Demand(10, held_bytes=100, run_bytes=400)) is Outcome.ADMIT
    assert bench.outcome(Demand(10, held_bytes=101, run_bytes=400)) is Outcome.WAIT


def test_a_run_that_has_ended_counts_no_more(bench: Bench):
    """Also one that was too short to time."""
    bench.admit(Demand(10, held_bytes=0, run_bytes=50))
    for seconds in (1.0, 0.0):
        bench.admission.begin_run(400)
        bench.admission.end_run(10, seconds)
        assert bench.admission.run_bytes == 50


# --- queue and drain rate -------------------------------------------------------------------


def test_more_tokens_than_drain_in_good_time_are_refused_at_once(bench: Bench):
    """A client that is told early can go elsewhere."""
    bench.admit(Demand(QUEUE_TOKENS, held_bytes=0))
    assert bench.outcome(Demand(100, held_bytes=0)) is Outcome.ADMIT

    bench.admit(Demand(1, held_bytes=0))
    assert bench.outcome(Demand(100, held_bytes=0)) is Outcome.QUEUE_FULL


def test_tokens_that_have_run_wait_no_more(bench: Bench):
    """A request of an hour must not fill the queue until its end."""
    permit = bench.admit(Demand(QUEUE_TOKENS + 50, held_bytes=0))
    assert bench.outcome(Demand(50, held_bytes=0)) is Outcome.QUEUE_FULL

    bench.admission.note_done(permit, 50)
    assert bench.outcome(Demand(50, held_bytes=0)) is Outcome.ADMIT
    bench.admission.note_done(permit, 10 * QUEUE_TOKENS)
    assert bench.admission.backlog.queue_tokens == 0


def test_a_long_list_does_not_lock_others_out(bench: Bench):
    """Only a window of its texts stands in the engine's queue, and others pass the rest."""
    bench.admit(Demand(100 * QUEUE_TOKENS, held_bytes=0, waiting_tokens=QUEUE_TOKENS // 2))

    assert bench.admission.backlog.queue_tokens == QUEUE_TOKENS // 2
    assert bench.outcome(Demand(50, held_bytes=0)) is Outcome.ADMIT


def test_an_empty_queue_takes_a_request_of_any_length(bench: Bench):
    """Otherwise a long list could never be embedded, however long one waits."""
    assert bench.outcome(Demand(10 * QUEUE_TOKENS, held_bytes=0)) is Outcome.ADMIT


def test_what_has_no_tokens_does_not_stand_in_the_queue(bench: Bench):
    """The fallback answers while the engine has work for minutes; that is what it is for."""
    bench.admit(Demand(10 * QUEUE_TOKENS, held_bytes=0))

    assert bench.outcome(Demand(0, held_bytes=10, is_fallback=True)) is Outcome.ADMIT
    assert bench.outcome(Demand(0, held_bytes=LINE)) is Outcome.TOO_LARGE


def test_the_queue_is_never_shorter_than_one_long_text():
    """A slow machine still takes what its model reads."""
    bench = Bench(queue_s=0.001)

    assert bench.admission.backlog.queue_limit_tokens == LEAST_QUEUE_TOKENS


def test_the_drain_rate_follows_runs_by_their_tokens(bench: Bench):
    """A large run tells what the engine can do; a small one is slow for reasons of its own."""
    assert bench.admission.backlog.tokens_per_s == FIRST_TOKENS_PER_S
    bench.admission.end_run(RATE_TOKENS, RATE_TOKENS / 1000)
    assert bench.admission.backlog.tokens_per_s == pytest.approx((FIRST_TOKENS_PER_S + 1000) / 2)

    before = bench.admission.backlog.tokens_per_s
    bench.admission.end_run(RATE_TOKENS // 100, 10.0)
    assert bench.admission.backlog.tokens_per_s == pytest.approx(before, rel=0.01)


def test_a_clock_that_stood_still_tells_nothing_of_the_rate(bench: Bench):
    """A run shorter than the clock's step would be infinitely fast."""
    bench.admission.end_run(1000, 0.0)

    assert bench.admission.backlog.tokens_per_s == FIRST_TOKENS_PER_S


def test_a_faster_engine_has_a_longer_queue(bench: Bench):
    """The bound is time, not tokens."""
    for _ in range(100):
        bench.admission.end_run(RATE_TOKENS, RATE_TOKENS / 1000)

    assert bench.admission.backlog.queue_limit_tokens == pytest.approx(1000 * QUEUE_S)


def test_the_prediction_is_the_queue_and_the_request_over_the_drain_rate(bench: Bench):
    """What `explain` promises."""
    bench.admit(Demand(400, held_bytes=0))

    predicted_s = bench.decide(Demand(200, held_bytes=0)).predicted_s
    assert predicted_s == pytest.approx(600 / FIRST_TOKENS_PER_S)


def test_retry_after_is_until_the_excess_has_drained(bench: Bench):
    """A client that comes back then finds room, and not much later."""
    bench.admission.end_run(RATE_TOKENS, RATE_TOKENS / FIRST_TOKENS_PER_S)
    bench.admit(Demand(QUEUE_TOKENS + 4000, held_bytes=0))

    decision = bench.decide(Demand(100, held_bytes=0))
    assert decision.room_s == pytest.approx(4000 / FIRST_TOKENS_PER_S)
    assert decision.retry_after_s == decision.room_s


@given(
    waiting=st.integers(0, 10**7),
    run=st.tuples(st.integers(1, 10**6), st.floats(1e-6, 1e6)),
    n_tokens=st.integers(1, 10**4),
    priority=st.sampled_from(Priority),
)
def test_retry_after_stays_within_its_bounds(
    waiting: int, run: tuple[int, float], n_tokens: int, priority: Priority
):
    """Below a second clients hammer; above two minutes they give up."""
    bench = Bench()
    bench.admission.end_run(*run)
    bench.hold(Demand(waiting, held_bytes=0))

    decision = bench.decide(Demand(n_tokens, 0, priority=priority))
    if decision.outcome is Outcome.QUEUE_FULL:
        assert 0 < decision.retry_after_s <= MOST_TOLD_S
    assert 1 <= told_s(decision.retry_after_s, 1.0) <= MOST_TOLD_S


# --- the two classes ------------------------------------------------------------------------

BULK, QUERY = Demand(1000, 0, priority=Priority.BULK), Demand(10, 0)


def test_a_full_queue_of_bulk_refuses_bulk_and_lets_a_query_in(bench: Bench):
    """A nightly job of lists must not turn those away who wait for one line."""
    bench.admission.end_run(RATE_TOKENS, RATE_TOKENS / FIRST_TOKENS_PER_S)
    bench.hold(Demand(QUEUE_TOKENS + 4000, 0, priority=Priority.BULK))

    refused, admitted = bench.decide(BULK), bench.decide(QUERY)
    assert (refused.outcome, admitted.outcome) == (Outcome.QUEUE_FULL, Outcome.ADMIT)
    assert refused.retry_after_s == pytest.approx(4000 / FIRST_TOKENS_PER_S)
    # One layer of bulk that may be under way, a third of its own tokens, and those.
    layer_tokens = short_run_tokens(FIRST_TOKENS_PER_S)
    assert admitted.predicted_s == pytest.approx((layer_tokens + 3 + 10) / FIRST_TOKENS_PER_S)


def test_a_full_queue_of_queries_refuses_the_next_one_and_no_bulk(bench: Bench):
    """Bulk has its share whatever comes, so it is not the one that would wait too long."""
    bench.hold(Demand(2 * QUEUE_TOKENS + 4000, 0))

    assert bench.outcome(QUERY) is Outcome.QUEUE_FULL
    bulk = bench.decide(BULK)
    assert bulk.outcome is Outcome.ADMIT
    assert bulk.predicted_s == pytest.approx(4 * BULK.n_tokens / FIRST_TOKENS_PER_S)


def test_a_class_that_hardly_waits_holds_the_other_up_by_no_more_than_that(bench: Bench):
    """The share bounds what passes; it does not make up tokens that are not there."""
    bench.hold(Demand(5, 0))
    bench.hold(Demand(7, 0, priority=Priority.BULK))

    assert bench.admission.backlog.tokens_before(Priority.INTERACTIVE, 10) == 12
    assert bench.admission.backlog.tokens_before(Priority.BULK, 1000) == 12


def test_the_classes_waiting_tokens_leave_with_their_permits(bench: Bench):
    """A count that is left behind would refuse its class for ever."""
    bulk, query = bench.hold(Demand(30, 0, priority=Priority.BULK)), bench.hold(QUERY)
    assert bench.admission.backlog.waiting_tokens == WaitingTokens(interactive=10, bulk=30)

    bench.admission.note_done(bulk, 20)
    bench.admission.reserve(query, Demand(4, 0, priority=Priority.BULK))
    assert bench.admission.backlog.waiting_tokens == WaitingTokens(interactive=0, bulk=14)
    bench.admission.release(bulk)
    bench.admission.release(query)
    assert bench.admission.backlog.waiting_tokens == WaitingTokens()


# --- the fallback ---------------------------------------------------------------------------


def test_only_the_fallback_may_pass_the_line_and_only_to_its_own(bench: Bench):
    """It has to answer just when memory stands above the line."""
    bench.admit(Demand(10, held_bytes=0))
    bench.observe(750)

    assert bench.outcome(Demand(0, 1)) is Outcome.WAIT
    assert bench.outcome(Demand(0, 100, is_fallback=True)) is Outcome.ADMIT
    assert bench.outcome(Demand(0, 101, is_fallback=True)) is Outcome.WAIT


def test_the_fallbacks_line_is_never_below_the_other():
    """Where rest is high the other passes it, and BM25 takes no more than what it stands in for."""
    bench = Bench(floor_bytes=840)
    assert bench.admission.line_bytes == 860

    decision = bench.decide(Demand(0, 20, is_fallback=True))
    assert decision.outcome is Outcome.ADMIT
    assert decision.largest_bytes == 20


# --- in any order ---------------------------------------------------------------------------

DEMANDS = st.builds(
    Demand, st.integers(0, 5000), held_bytes=st.integers(0, 400), run_bytes=st.integers(0, 400)
)


@dataclass
class Books:
    """What a permit stands for, kept a second time."""

    demand: Demand
    kept_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        return self.kept_bytes + self.demand.held_bytes


class AdmissionWalk(RuleBasedStateMachine):
    """Requests grow, come and go between runs, and memory is measured as promised: never more than
    the floor, what is held and the run. The books are kept a second time, in plain sums."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.books: dict[Permit, Books] = {}
        self.run_bytes = 0

    @property
    def admission(self) -> Admission:
        return self.bench.admission

    @property
    def governor(self) -> Governor:
        return self.bench.governor

    @rule(demand=DEMANDS)
    def arrive(self, demand: Demand) -> None:
        permit = Permit()
        decision = self.governor.renew(permit, demand, may_wait=False)
        assert min(decision.headroom_bytes, decision.largest_bytes) >= 0
        if decision.outcome is Outcome.ADMIT:
            self.books[permit] = Books(demand)

    @precondition(lambda self: self.books)
    @rule(data=st.data(), demand=DEMANDS)
    def renew(self, data: st.DataObject, demand: Demand) -> None:
        permit = self._any(data)
        if self.governor.renew(permit, demand, may_wait=False).outcome is Outcome.ADMIT:
            self.books[permit].demand = demand

    @precondition(lambda self: self.books)
    @rule(data=st.data(), n_bytes=st.integers(0, 300))
    def keep(self, data: st.DataObject, n_bytes: int) -> None:
        permit = self._any(data)
        if self.governor.keep(permit, n_bytes).outcome is Outcome.ADMIT:
            self.books[permit].kept_bytes = n_bytes

    @precondition(lambda self: self.books)
    @rule(data=st.data(), n_bytes=st.integers(0, 300))
    def shrink(self, data: st.DataObject, n_bytes: int) -> None:
        permit = self._any(data)
        self.governor.shrink(permit, n_bytes)
        self.books[permit].kept_bytes = min(self.books[permit].kept_bytes, n_bytes)

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        permit = self._any(data)
        self.governor.settle(permit)
        self.books[permit] = Books(NOTHING, self.books[permit].held_bytes)

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        permit = self._any(data)
        self.governor.drop(permit)
        self.books[permit].demand = NOTHING

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        permit = self._any(data)
        del self.books[permit]
        for _ in range(2):  # a second time changes nothing
            self.governor.leave(permit)
        # Waiting texts of a request that has gone are dropped, and so nothing runs at the end.
        if not self.books:
            self.end_run()

    @precondition(lambda self: self.books and not self.run_bytes)
    @rule(share=st.floats(0, 1))
    def begin_run(self, share: float) -> None:
        self.run_bytes = round(share * self.admission.room_for_run_bytes())
        self.admission.begin_run(self.run_bytes)

    @rule()
    def end_run(self) -> None:
        self.run_bytes = 0
        self.admission.end_run(100, 1.0)

    @rule(share=st.floats(0, 1), after_s=st.floats(0, 20))
    def look(self, share: float, after_s: float) -> None:
        held = sum(books.held_bytes for books in self.books.values())
        self.bench.observe(FLOOR + round(share * (held + self.run_bytes)), after_s=after_s)

    @invariant()
    def the_books_agree(self) -> None:
        books = self.books.values()
        largest = max([self.run_bytes, *(each.demand.run_bytes for each in books)])
        assert self.admission.held_bytes == sum(each.held_bytes for each in books)
        assert self.admission.run_bytes == largest
        assert self.admission.backlog.queue_tokens == sum(each.demand.n_tokens for each in books)
        assert self.admission.idle_floor_bytes == FLOOR

    @invariant()
    def nothing_is_predicted_above_the_line_nor_below_nothing(self) -> None:
        assert FLOOR <= self.admission.predicted_bytes <= LINE
        assert self.admission.room_for_run_bytes() >= self.admission.run_bytes - self.run_bytes

    @invariant()
    def every_admitted_text_finds_room_to_run(self) -> None:
        runs = [each.demand.run_bytes for each in self.books.values()]
        assert self.admission.room_for_run_bytes() >= max(runs, default=0)

    def _any(self, data: st.DataObject) -> Permit:
        return data.draw(st.sampled_from(list(self.books)))


TestAdmissionWalk = AdmissionWalk.TestCase
