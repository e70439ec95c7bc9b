"""The governor: in which order a request is checked, what its permit stands for, what runs tell.

Sizes are small round numbers: of a budget of 1000 bytes the line takes 700 and the server at rest
100, so 600 are there for requests.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from plimsoll.policy import lines
from plimsoll.policy.admission import Permit
from plimsoll.policy.asked import NOTHING_ASKED, Asked
from plimsoll.policy.backlog import FIRST_TOKENS_PER_S
from plimsoll.policy.breaker import BreakerState, Transition
from plimsoll.policy.costs import NOTHING, Demand
from plimsoll.policy.decision import Decision, Outcome
from plimsoll.policy.floor import REST_WINDOW_S
from plimsoll.policy.governor import Governor
from plimsoll.policy.priority import Priority
from plimsoll.policy.reading import Reading
from plimsoll.policy.runs import (
    LEAST_RUN_TOKENS,
    LIVE_S,
    EngineTotals,
    live_layer_tokens,
    short_run_tokens,
)
from plimsoll.policy.scheduler import Cap
from plimsoll.policy.waiting import MOST_WAITING
from tests.fakes import FakeClock
from tests.policy.ended_runs import run_of

BUDGET, LINE, FLOOR = 1000, 700, 100
ROOM = LINE - FLOOR
RECOVERY_S = 15.0
QUEUE_S = 100.0
QUEUE_TOKENS = round(FIRST_TOKENS_PER_S * QUEUE_S)


class Bench:
    """A governor, its clock, and every change of its breaker."""

    def __init__(self, floor_bytes: int = FLOOR) -> None:
        self.clock = FakeClock()
        self.transitions: list[Transition] = []
        self.governor = Governor(
            self.clock,
            budget_bytes=BUDGET,
            cores=4,
            queue_s=QUEUE_S,
            recovery_timeout_s=RECOVERY_S,
            on_transition=self.transitions.append,
        )
        self.governor.measure(floor_bytes, BUDGET)

    def observe(
        self, used_bytes: int = FLOOR, asked: Asked = NOTHING_ASKED, **changed: Any
    ) -> None:
        """A second passes, and this is what was measured."""
        self.clock.now_s += 1
        values = {"budget_bytes": BUDGET, "cores": 4.0, **changed}
        self.governor.observe(Reading(used_bytes=used_bytes, **values), asked)

    def hold(self, demand: Demand) -> Permit:
        """Another request, admitted without being asked."""
        permit = Permit()
        self.governor.admission.reserve(permit, demand)
        return permit

    def open_breaker(self) -> None:
        for _ in range(lines.FAILURES):
            self.governor.failed(Permit())
        assert self.governor.breaker.state is BreakerState.OPEN

    def books(self) -> tuple[int, int, int, int]:
        """Held, run, queue and predicted, as the next request finds them."""
        admission = self.governor.admission
        return (
            admission.held_bytes,
            admission.run_bytes,
            admission.backlog.queue_tokens,
            admission.predicted_bytes,
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- the order of the checks ----------------------------------------------------------------

IN_ORDER = (Outcome.TOO_LARGE, Outcome.QUEUE_FULL, Outcome.BREAKER_OPEN, Outcome.WAIT)


@pytest.mark.parametrize("is_violated", list(product([False, True], repeat=4)))
def test_of_several_checks_that_fail_the_first_one_decides(
    bench: Bench, is_violated: tuple[bool, bool, bool, bool]
):
    """Simulation and server once asked in different orders: a client was told to wait for a
    breaker where the queue was full, and the other way round."""
    too_large, queue_full, breaker_open, no_room = is_violated
    if queue_full:
        bench.hold(Demand(2 * QUEUE_TOKENS + 1, 0))
    if breaker_open:
        bench.open_breaker()
    if no_room:
        bench.hold(Demand(0, ROOM))
    decision = bench.governor.explain(Demand(10, ROOM + 1 if too_large else ROOM))

    violated = [outcome for outcome, fails in zip(IN_ORDER, is_violated, strict=True) if fails]
    assert decision.outcome is (violated[0] if violated else Outcome.ADMIT)


def test_at_the_door_the_queue_comes_before_the_breaker(bench: Bench):
    """The same order where nothing is known of a request but that it comes."""
    waiting = bench.hold(Demand(2 * QUEUE_TOKENS + 4 * round(FIRST_TOKENS_PER_S), 0))
    bench.open_breaker()
    found = [bench.governor.enter(Permit(), asks_breaker=True)]
    bench.governor.leave(waiting)
    found.append(bench.governor.enter(Permit(), asks_breaker=True))
    found.append(bench.governor.enter(Permit(), asks_breaker=False))

    assert [decision.outcome for decision in found] == [
        Outcome.QUEUE_FULL,
        Outcome.BREAKER_OPEN,
        Outcome.ADMIT,
    ]
    assert [decision.retry_after_s for decision in found[:2]] == [4.0, RECOVERY_S]


def test_the_door_takes_neither_room_nor_a_place_in_the_queue(bench: Bench):
    """A server whose memory is full still says at once whether a request may try."""
    bench.hold(Demand(0, ROOM))
    before = bench.books()

    assert bench.governor.enter(Permit(), asks_breaker=True).outcome is Outcome.ADMIT
    assert bench.books() == before


def test_a_decision_says_the_numbers_behind_it(bench: Bench):
    """An operator, a client and `explain` see the same ones."""
    bench.hold(Demand(400, 250, run_bytes=50))
    decision = bench.governor.explain(Demand(200, 200, run_bytes=100))

    assert decision == Decision(
        outcome=Outcome.ADMIT,
        peak_bytes=300,
        headroom_bytes=ROOM - 250 - 50 + 50,  # its run does not come on top of the other
        largest_bytes=ROOM,
        predicted_s=pytest.approx(600 / FIRST_TOKENS_PER_S),  # type: ignore[arg-type]
        room_s=0.0,
        retry_after_s=pytest.approx(1.0),  # type: ignore[arg-type]
        keeps_place=False,
    )


def test_explaining_changes_nothing(bench: Bench):
    """A client may ask as often as it likes, also when the breaker would let one request try."""
    bench.hold(Demand(400, 250, run_bytes=50))
    bench.open_breaker()
    bench.clock.now_s += RECOVERY_S
    governor = bench.governor
    before = (bench.books(), governor.waiting, governor.step, governor.totals, governor.limits())
    n_transitions = len(bench.transitions)
    for n_bytes in (10, ROOM, ROOM + 1):
        governor.explain(Demand(10, n_bytes))

    after = (bench.books(), governor.waiting, governor.step, governor.totals, governor.limits())
    assert after == before
    assert len(bench.transitions) == n_transitions
    permit = Permit()
    governor.enter(permit, asks_breaker=True)
    assert governor.breaker.state is BreakerState.HALF_OPEN  # the probe was still to be had


# --- one permit from body to reply ----------------------------------------------------------


def test_one_permit_grows_from_body_to_ids_to_its_demand_and_is_left_once(bench: Bench):
    """A request stands in the books once: its body is not paid a second time with its texts, and
    what it had is gone with it."""
    governor, permit = bench.governor, Permit()
    other = bench.hold(Demand(5, 50, run_bytes=20))

    for n_bytes in (100, 180):  # the body, as it comes in
        assert governor.keep(permit, n_bytes).outcome is Outcome.ADMIT
        assert bench.books() == (50 + n_bytes, 20, 5, FLOOR + 70 + n_bytes)
    assert governor.enter(permit, asks_breaker=True).outcome is Outcome.ADMIT
    governor.shrink(permit, 60)  # parsed
    for demand in (Demand(10, 80), Demand(30, 240, run_bytes=200)):  # ids, then everything
        assert governor.renew(permit, demand).outcome is Outcome.ADMIT
        held_bytes, run_bytes = 110 + demand.held_bytes, max(20, demand.run_bytes)
        expected = (held_bytes, run_bytes, 5 + demand.n_tokens, FLOOR + held_bytes + run_bytes)
        assert bench.books() == expected
    governor.leave(permit)
    assert bench.books() == (50, 20, 5, FLOOR + 70)
    governor.leave(permit)
    assert bench.books() == (50, 20, 5, FLOOR + 70)
    governor.leave(other)
    assert bench.books() == (0, 0, 0, FLOOR)


def test_what_a_permit_holds_already_does_not_stand_in_its_way(bench: Bench):
    """Its own body is no other request: up to the line it may have all there is."""
    permit = Permit()
    bench.governor.keep(permit, 200)

    assert bench.governor.renew(permit, Demand(10, 300)).outcome is Outcome.ADMIT
    assert bench.governor.renew(permit, Demand(10, 300, run_bytes=100)).outcome is Outcome.ADMIT
    assert bench.governor.renew(permit, Demand(10, 301, run_bytes=100)).outcome is Outcome.TOO_LARGE


@pytest.mark.parametrize(
    ("others_bytes", "demand", "may_wait", "outcome"),
    [
        (0, Demand(50, ROOM), True, Outcome.TOO_LARGE),
        (300, Demand(50, 300), True, Outcome.WAIT),
        (300, Demand(50, 300), False, Outcome.NO_ROOM),
    ],
    ids=["too large", "to wait", "no wait"],
)
def test_a_permit_that_is_refused_more_keeps_what_it_had(
    bench: Bench, others_bytes: int, demand: Demand, may_wait: bool, outcome: Outcome
):
    """Half an answer in the books would be lost until a restart, or given away twice."""
    governor, permit = bench.governor, Permit()
    governor.keep(permit, 40)
    governor.renew(permit, Demand(20, 100, run_bytes=30))
    bench.hold(Demand(0, others_bytes))
    before = bench.books()

    assert governor.renew(permit, demand, may_wait=may_wait).outcome is outcome
    assert bench.books() == before
    assert permit.held_bytes == 140
    governor.leave(permit)
    assert governor.admission.held_bytes == others_bytes


@pytest.mark.parametrize(("n_bytes", "outcome"), [(301, Outcome.NO_ROOM), (601, Outcome.TOO_LARGE)])
def test_a_body_that_cannot_grow_keeps_what_it_had(bench: Bench, n_bytes: int, outcome: Outcome):
    """Its owner decides what becomes of it; and what can never fit is not to be sent again, even
    where it came in small steps."""
    permit = Permit()
    bench.governor.keep(permit, 200)
    bench.hold(Demand(0, 300))

    assert bench.governor.keep(permit, n_bytes).outcome is outcome
    assert (permit.kept_bytes, bench.governor.admission.held_bytes) == (200, 500)
    assert not bench.governor.waiting


def test_a_body_that_shrinks_never_grows_by_it(bench: Bench):
    """Room that was not asked for is not taken."""
    permit = Permit()
    bench.governor.keep(permit, 200)
    bench.governor.shrink(permit, 300)
    assert permit.kept_bytes == 200
    bench.governor.shrink(permit, 50)

    assert permit.kept_bytes == bench.governor.admission.held_bytes == 50


def test_a_request_with_tokens_in_the_queue_is_not_asked_for_a_place_again(bench: Bench):
    """It was let in when there was one; those that came after it have filled the queue."""
    permit = Permit()
    bench.governor.renew(permit, Demand(10, 10))
    bench.hold(Demand(QUEUE_TOKENS, 0))

    assert bench.governor.renew(permit, Demand(500, 50)).outcome is Outcome.ADMIT
    assert bench.governor.renew(Permit(), Demand(500, 50)).outcome is Outcome.QUEUE_FULL


def test_what_is_settled_stays_held_and_the_next_demand_comes_on_top(bench: Bench):
    """Vectors of the documents are there while the query is embedded; their runs are over."""
    governor, permit = bench.governor, Permit()
    governor.keep(permit, 20)
    governor.renew(permit, Demand(30, 100, run_bytes=200))
    governor.settle(permit)
    assert bench.books() == (120, 0, 0, FLOOR + 120)

    assert governor.renew(permit, Demand(5, 40, run_bytes=10)).outcome is Outcome.ADMIT
    assert bench.books() == (160, 10, 5, FLOOR + 170)
    too_much = Demand(5, ROOM - 120 + 1)
    assert governor.renew(permit, too_much).outcome is Outcome.TOO_LARGE
    governor.leave(permit)
    assert governor.admission.held_bytes == 0


def test_a_demand_that_is_dropped_leaves_the_body(bench: Bench):
    """The fallback answers the same body; what the model would have taken is free for others."""
    governor, permit = bench.governor, Permit()
    governor.keep(permit, 20)
    governor.renew(permit, Demand(30, 100, run_bytes=200))
    governor.drop(permit)

    assert bench.books() == (20, 0, 0, FLOOR + 20)
    assert permit.demand is NOTHING


def test_tokens_that_have_run_wait_no_more(bench: Bench):
    """A request of an hour must not fill the queue until its end."""
    permit = Permit()
    bench.governor.renew(permit, Demand(30, 0))
    bench.governor.admission.note_done(permit, 20)

    assert bench.governor.admission.backlog.queue_tokens == 10


# --- waiting for room -----------------------------------------------------------------------


def test_waiting_requests_are_known_in_the_order_they_came(bench: Bench):
    """Where there is room for one, it is the first; asking again keeps the place."""
    governor, permits = bench.governor, [Permit() for _ in range(3)]
    holding = bench.hold(Demand(0, ROOM))
    for permit in (*permits, *reversed(permits)):
        assert governor.renew(permit, Demand(10, 300)).outcome is Outcome.WAIT
    assert list(governor.waiting) == permits

    governor.give_up(permits[1])
    governor.leave(holding)
    assert governor.renew(permits[0], Demand(10, 300)).outcome is Outcome.ADMIT
    assert list(governor.waiting) == permits[2:]
    governor.leave(permits[2])
    assert not governor.waiting


def test_background_work_leaves_some_room_to_others(bench: Bench):
    """So it stands back while a search still finds its room."""
    left = round(lines.LEFT_BEHIND_RATIO * BUDGET)
    bench.hold(Demand(0, 400))
    for n_bytes, outcome in ((200 - left, Outcome.ADMIT), (201 - left, Outcome.WAIT)):
        background = Demand(0, n_bytes, yields=True)
        assert bench.governor.explain(background).outcome is outcome
    assert bench.governor.explain(Demand(0, 200)).outcome is Outcome.ADMIT


@pytest.mark.parametrize("missing", [0, 1, 10, 100])
def test_background_work_that_nearly_fills_an_idle_server_leaves_half_of_the_rest(
    bench: Bench, missing: int
):
    """Else it would be admitted at no other time than when nothing else is there at all."""
    background = Demand(0, ROOM - missing, yields=True)
    assert bench.governor.explain(background).outcome is Outcome.ADMIT
    beside = bench.hold(Demand(0, missing - min(120, missing // 2)))
    assert bench.governor.explain(background).outcome is Outcome.ADMIT
    bench.governor.keep(beside, 1)
    assert bench.governor.explain(background).outcome is Outcome.WAIT


def test_background_work_finds_no_room_while_another_request_waits_for_it(bench: Bench):
    """The one that waits is asked first, though it came later."""
    bench.hold(Demand(0, ROOM - 200))
    background, live = Permit(), Permit()
    large = Demand(0, 199, yields=True)
    small = replace(large, held_bytes=1)
    assert bench.governor.renew(background, large).outcome is Outcome.WAIT
    assert bench.governor.explain(small).outcome is Outcome.ADMIT
    assert bench.governor.renew(live, Demand(0, 201)).outcome is Outcome.WAIT
    assert bench.governor.waiting == [live, background]

    assert bench.governor.explain(small).outcome is Outcome.WAIT
    assert bench.governor.keep(Permit(), 1, yields=True).outcome is Outcome.NO_ROOM
    assert bench.governor.explain(Demand(0, 1)).outcome is Outcome.ADMIT
    bench.governor.give_up(live)
    assert bench.governor.explain(small).outcome is Outcome.ADMIT
    assert bench.governor.waiting == [background]


def test_a_waiting_request_that_becomes_too_large_waits_no_more(bench: Bench):
    """The limit was lowered while it stood there: no room will ever come."""
    governor, permit = bench.governor, Permit()
    bench.hold(Demand(0, ROOM))
    governor.renew(permit, Demand(10, 300))
    governor.measure(FLOOR, BUDGET // 2)

    assert governor.renew(permit, Demand(10, 300)).outcome is Outcome.TOO_LARGE
    assert not governor.waiting


def test_only_so_many_requests_wait(bench: Bench):
    """Each holds its texts until then; those that wait already keep their places."""
    governor = bench.governor
    bench.hold(Demand(0, ROOM))
    permits = [Permit() for _ in range(MOST_WAITING)]
    for permit in permits:
        assert governor.renew(permit, Demand(10, 1)).outcome is Outcome.WAIT

    late = Permit()
    assert governor.renew(late, Demand(10, 1)).outcome is Outcome.NO_ROOM
    assert governor.explain(Demand(10, 1)).outcome is Outcome.NO_ROOM
    assert governor.renew(permits[-1], Demand(10, 1)).outcome is Outcome.WAIT
    governor.give_up(permits[0])
    assert governor.renew(late, Demand(10, 1)).outcome is Outcome.WAIT


# --- the breaker's leave --------------------------------------------------------------------


def entered(bench: Bench) -> Permit:
    """A request that the breaker has let through."""
    permit = Permit()
    assert bench.governor.enter(permit, asks_breaker=True).outcome is Outcome.ADMIT
    return permit


def probing(bench: Bench) -> Permit:
    """The one that runs as a probe."""
    bench.open_breaker()
    bench.clock.now_s += RECOVERY_S
    return entered(bench)


def test_requests_that_find_no_memory_open_the_breaker(bench: Bench):
    """Three within half a minute; the next one is told when to come back."""
    for _ in range(lines.FAILURES):
        permit = entered(bench)
        bench.governor.failed(permit)
        bench.governor.leave(permit)

    decision = bench.governor.enter(Permit(), asks_breaker=True)
    assert decision.outcome is Outcome.BREAKER_OPEN
    assert decision.retry_after_s == RECOVERY_S


def test_a_good_probe_closes_the_breaker(bench: Bench):
    """One at a time is let through until then."""
    bench.observe()
    probe = probing(bench)
    assert bench.governor.enter(Permit(), asks_breaker=True).outcome is Outcome.BREAKER_OPEN
    bench.governor.succeeded(probe)

    assert bench.governor.breaker.state is BreakerState.CLOSED
    assert entered(bench)


def test_a_probe_that_asks_again_is_not_refused_for_itself(bench: Bench):
    """Ids become texts first, and those are embedded on the same permit."""
    bench.observe()
    probe = probing(bench)
    assert bench.governor.enter(probe, asks_breaker=True).outcome is Outcome.ADMIT
    bench.governor.succeeded(probe)
    assert bench.governor.breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("end", ["drop", "leave"])
def test_a_probe_that_ends_without_an_outcome_makes_room_for_another(bench: Bench, end: str):
    """Its client hung up, or got BM25 instead; the breaker would wait for it for ever."""
    probe = probing(bench)
    getattr(bench.governor, end)(probe)

    assert bench.governor.breaker.state is BreakerState.HALF_OPEN
    assert entered(bench)


def test_the_breaker_closes_also_where_words_are_asked_for_without_a_pause(bench: Bench):
    """The server had come to rest above the closing line; each request that got words instead kept
    it from being seen at rest, and good probes ran for hours."""
    bench.open_breaker()
    for _ in range(1 + round(REST_WINDOW_S + RECOVERY_S)):
        words = bench.hold(Demand(0, 5))
        bench.observe(665)
        bench.governor.leave(words)
        probe = Permit()
        if bench.governor.enter(probe, asks_breaker=True).outcome is Outcome.ADMIT:
            bench.governor.succeeded(probe)
        bench.governor.leave(probe)

    assert bench.governor.breaker.state is BreakerState.CLOSED


def test_a_request_that_fell_back_tells_the_breaker_nothing_with_its_good_end(bench: Bench):
    """BM25 has answered it, not the engine: its success must not clear failures of others."""
    bench.observe()  # memory is low, so a success would clear them
    fallen_back = entered(bench)
    bench.governor.drop(fallen_back)
    for _ in range(lines.FAILURES - 1):
        bench.governor.failed(Permit())
    bench.governor.succeeded(fallen_back)
    bench.governor.failed(Permit())

    assert bench.governor.breaker.state is BreakerState.OPEN


def test_a_request_that_the_breaker_was_not_asked_for_tells_it_nothing(bench: Bench):
    """BM25 takes no run; its good end says nothing of the engine's memory."""
    probing(bench)
    sparse = Permit()
    bench.governor.enter(sparse, asks_breaker=False)
    bench.governor.succeeded(sparse)
    bench.governor.leave(sparse)

    assert bench.governor.breaker.state is BreakerState.HALF_OPEN
    assert bench.governor.enter(Permit(), asks_breaker=True).outcome is Outcome.BREAKER_OPEN


def test_a_refused_request_holds_no_leave_of_the_breaker(bench: Bench):
    """A full queue is asked first: the one probe would be lost on a request that never runs."""
    bench.open_breaker()
    bench.clock.now_s += RECOVERY_S
    waiting = bench.hold(Demand(2 * QUEUE_TOKENS + 1, 0))
    refused = Permit()
    assert bench.governor.enter(refused, asks_breaker=True).outcome is Outcome.QUEUE_FULL
    assert refused.admittance is None
    bench.governor.leave(waiting)

    assert entered(bench)


# --- once a second --------------------------------------------------------------------------


def test_used_memory_reaches_admission_breaker_and_scheduler(bench: Bench):
    """One reading for all three: they once took their own, a second apart."""
    bench.hold(Demand(0, 0))
    for _ in range(3):
        bench.observe(950)

    assert bench.governor.breaker.state is BreakerState.OPEN
    assert bench.governor.plan.step == lines.DROPPING_STEP
    assert bench.governor.admission.predicted_bytes == 950


def test_a_server_that_rests_above_the_breakers_line_is_not_held_against_it():
    """It would never close again."""
    bench = Bench(floor_bytes=920)
    for _ in range(5):
        bench.observe(920)

    assert bench.governor.breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        ({"working_set_bytes": 960}, 2),
        ({"pressure_ratio": 0.11}, 2),
        ({"others_ratio": 0.5, "throttled_ratio": 0.31}, 0),
        ({"cores": 2.0}, 0),
    ],
)
def test_what_was_measured_of_the_machine_reaches_the_plan(
    bench: Bench, changed: dict[str, Any], step: int
):
    """Nothing is lost on the way: neither ratios nor bytes that become ratios."""
    calm = bench.governor.plan
    bench.observe(**changed)

    plan = bench.governor.plan
    assert plan.step == step
    assert plan != calm


def test_throughput_is_what_has_run_between_two_observations(bench: Bench):
    """A rate since the start would hide what is going on now."""
    bench.governor.run_ended(run_of(300, 0.5))
    bench.observe()
    assert bench.governor.tokens_per_s == pytest.approx(300)
    bench.observe()
    assert bench.governor.tokens_per_s == 0


@pytest.mark.parametrize(("waits", "parallelism"), [(True, 8), (False, 4)])
def test_a_halving_is_taken_back_only_while_work_waits(bench: Bench, waits: bool, parallelism: int):
    """The drain rate is the target; without a queue there is nothing to catch up with, and the
    halving ends more slowly."""
    if waits:
        bench.hold(Demand(1000, 0))
    bench.observe(800)
    for _ in range(35 if waits else 65):
        bench.observe(100)

    assert bench.governor.plan.parallelism == parallelism


def test_what_remedies_ask_for_binds_with_its_reason_while_it_is_asked(bench: Bench):
    """Caps reach the plan, layers that are to stay reach the engine."""
    asked = Asked((Cap("bottleneck", 3, "the disk is behind"),), kept_bytes=50)
    bench.observe(asked=asked)
    assert bench.governor.plan.reasons == ("bottleneck: the disk is behind",)
    assert bench.governor.limits().kept_bytes == 50

    bench.observe()
    assert bench.governor.limits().kept_bytes is None


@pytest.mark.parametrize(
    ("kept", "together"), [((None, None), None), ((7, None), 7), ((None, 5), 5), ((7, 5), 5)]
)
def test_of_two_amounts_to_keep_the_smaller_counts(
    kept: tuple[int | None, int | None], together: int | None
):
    """Each remedy knows only its own reason; more than one of them allows would not fit."""
    one, other = (Asked((Cap("x", n, "why"),), n_bytes) for n, n_bytes in enumerate(kept))

    assert one.with_also(other) == Asked(one.caps + other.caps, together)


def test_threads_that_are_asked_for_bind_as_long_as_they_are_and_leave_the_parallelism(
    bench: Bench,
):
    """Runs stay as large as they were; and a conversion that is over needs no processor."""
    bench.observe(asked=Asked(most_threads=1).with_also(Asked(most_threads=2)))
    assert (bench.governor.plan.parallelism, bench.governor.plan.engine_threads) == (8, 1)

    bench.observe()
    assert bench.governor.plan.engine_threads == 4


def test_requests_leave_runs_the_room_that_is_asked_for_while_others_wait_for_the_engine(
    bench: Bench,
):
    """Else what they hold leaves runs next to nothing; but the only request may have all."""
    governor, half = bench.governor, Asked(run_ratio=0.5)
    demand = Demand(10, ROOM // 2)

    bench.observe(asked=half)
    assert governor.explain(Demand(10, ROOM)).outcome is Outcome.ADMIT
    other = bench.hold(Demand(10, 1))
    assert governor.explain(demand).outcome is Outcome.WAIT
    assert governor.explain(replace(demand, held_bytes=ROOM // 2 - 1)).outcome is Outcome.ADMIT
    assert governor.explain(replace(demand, n_tokens=0)).outcome is Outcome.ADMIT  # a body, BM25
    bench.governor.admission.note_done(other, 10)
    assert governor.explain(demand).outcome is Outcome.ADMIT

    bench.hold(Demand(10, 1))
    bench.observe()
    assert governor.explain(demand).outcome is Outcome.ADMIT


# --- the step -------------------------------------------------------------------------------


def test_the_step_is_the_plans_unless_requests_wait_or_the_breaker_is_not_closed(bench: Bench):
    """What an operator sees first: how far it has come."""
    governor, permit = bench.governor, Permit()
    holding = bench.hold(Demand(0, ROOM))
    assert governor.step == 0
    bench.observe(720)
    assert governor.step == 1
    governor.renew(permit, Demand(10, 1))
    assert governor.step == lines.WAITING_STEP
    bench.open_breaker()
    assert governor.step == lines.BREAKER_STEP
    bench.clock.now_s += RECOVERY_S
    probe = entered(bench)
    assert governor.breaker.state is BreakerState.HALF_OPEN
    assert governor.step == lines.BREAKER_STEP  # still all but one are refused

    governor.leave(holding)
    governor.give_up(permit)
    governor.succeeded(probe)
    bench.observe(FLOOR)
    assert governor.breaker.state is BreakerState.CLOSED
    assert governor.step == governor.plan.step


# --- what the engine may do, and what it has done -------------------------------------------


def test_a_run_has_the_room_that_is_left_beside_everything_held(bench: Bench):
    """From the line, not from the budget."""
    bench.hold(Demand(10, 150, run_bytes=300))

    assert bench.governor.limits().room_bytes == ROOM - 150


def test_nothing_runs_while_the_breaker_is_open_and_its_probe_does(bench: Bench):
    """What was admitted before waits too: its run may be the one that gets the process killed."""
    assert not bench.governor.limits().is_paused
    bench.open_breaker()
    assert bench.governor.limits().is_paused
    bench.clock.now_s += RECOVERY_S
    entered(bench)

    assert not bench.governor.limits().is_paused


def test_weights_may_stay_up_to_half_of_the_budget_there_is_now(bench: Bench):
    """An orchestrator may change it while the server runs."""
    assert bench.governor.limits().resident_bytes == BUDGET // 2
    bench.governor.measure(FLOOR, BUDGET // 4)

    assert bench.governor.limits().resident_bytes == BUDGET // 8


def test_runs_add_up_and_the_one_under_way_counts_as_busy(bench: Bench):
    """The bottleneck is named from how busy the engine is, also within a run of a minute."""
    governor = bench.governor
    assert governor.totals == EngineTotals()
    governor.run_began(40)
    assert governor.admission.run_bytes == 40
    bench.clock.now_s += 2
    assert governor.totals == EngineTotals(busy_s=2)
    bench.clock.now_s += 1
    governor.run_ended(run_of(100, 2.5))
    assert governor.admission.run_bytes == 0
    bench.clock.now_s += 10  # nothing runs
    governor.run_began(0)
    bench.clock.now_s += 1
    governor.run_ended(run_of(50, 0.5))

    assert governor.totals == EngineTotals(busy_s=4, n_runs=2, n_tokens=150, run_s=3)


def test_a_run_that_was_too_short_to_time_counts_with_its_tokens(bench: Bench):
    """For the drain rate it would be infinitely fast; for throughput it is work done."""
    bench.governor.run_began(0)
    bench.governor.run_ended(run_of(1000, 0.0))

    assert bench.governor.admission.backlog.tokens_per_s == FIRST_TOKENS_PER_S
    assert bench.governor.totals.n_tokens == 1000


def test_the_drain_rate_follows_the_runs(bench: Bench):
    """What a client is told of its wait comes from there."""
    for _ in range(100):
        bench.governor.run_ended(run_of(4096, 4.096))

    assert bench.governor.explain(Demand(1000, 0)).predicted_s == pytest.approx(1.0)


def test_runs_are_as_short_as_the_drain_rate_asks_for(bench: Bench):
    """The same length would be soon over on one machine and take a second on another."""
    for _ in range(100):
        bench.governor.run_ended(run_of(4096, 0.4096))

    assert bench.governor.limits().short_tokens == short_run_tokens(10_000) > LEAST_RUN_TOKENS


def test_layers_of_own_bulk_are_shorter_while_interactive_requests_come(bench: Bench):
    """Each of these waits for the end of one; a run of texts that come alone stays as it is."""
    bench.governor.run_ended(run_of(n_tokens=100_000_000, seconds=10_000.0))
    alone = bench.governor.limits()
    assert alone.own_layer_tokens == alone.short_tokens == short_run_tokens(10_000)
    bench.governor.enter(Permit(), asks_breaker=True, priority=Priority.BULK)
    assert bench.governor.limits() == alone

    bench.governor.enter(Permit(), asks_breaker=True)
    beside = bench.governor.limits()
    assert beside.own_layer_tokens == live_layer_tokens(10_000) < alone.own_layer_tokens
    assert beside.short_tokens == alone.short_tokens
    bench.observe()
    assert bench.governor.limits().own_layer_tokens == beside.own_layer_tokens
    bench.clock.now_s += LIVE_S
    bench.observe()
    assert bench.governor.limits().own_layer_tokens == alone.own_layer_tokens


def test_a_model_that_has_opened_moves_rest(bench: Bench):
    """The next decision is by the memory that the server takes with it."""
    bench.governor.measure_rest_anew(400)

    assert bench.governor.explain(Demand(0, 1)).headroom_bytes == LINE - 400


def test_a_client_with_nothing_in_the_queue_is_not_refused_for_what_others_fill_it_with(
    bench: Bench,
):
    """Texts are served in turn by client, so that it would have its turn next."""
    one, two = object(), object()
    for _ in range(40):
        permit = Permit(client=one)
        governor = bench.governor
        if governor.enter(permit, asks_breaker=False, size=5000).outcome is Outcome.ADMIT:
            governor.renew(permit, Demand(1000, 0))
    refused = governor.enter(Permit(client=one), asks_breaker=False, size=5000)
    assert refused.outcome is Outcome.QUEUE_FULL

    other = Permit(client=two)
    assert governor.enter(other, asks_breaker=False, size=5000).outcome is Outcome.ADMIT
    governor.renew(other, Demand(1000, 0))
    again = governor.enter(Permit(client=two), asks_breaker=False, size=5000)
    assert again.outcome is Outcome.QUEUE_FULL
