"""A trace replayed through the server's rules: every request has one end, and memory its line."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.known_models import BUILTIN, NOMIC_V1_5
from plimsoll.encoder.layout import run_bytes
from plimsoll.policy.breaker import BreakerState
from plimsoll.policy.costs import TextSizes
from plimsoll.policy.governor import Governor
from plimsoll.policy.lines import FALLBACK_RATIO, FULL_PARALLELISM, HIGH_PARALLELISM, HIGH_RATIO
from plimsoll.policy.scheduler import Plan
from plimsoll.settings import Settings
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.report import Fate, SimulationReport
from plimsoll.simulation.server import MOST_TAIL_S, simulate
from plimsoll.simulation.trace import (
    Arrival,
    ExtraMemory,
    MemoryFailure,
    Processors,
    Rereading,
    TraceEvent,
)

MIB = 1 << 20
NOMIC = SHAPES[NOMIC_V1_5.name]
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def machine(limit_mib: int = 400, **options: object) -> SimulatedMachine:
    return SimulatedMachine(limit_mib * MIB, NOMIC, 8192, **options)


def every(period_s: float, until_s: float, tokens: Sequence[int] = (60, 60)) -> list[TraceEvent]:
    n_requests = round(until_s / period_s)
    return [Arrival(number * period_s, tokens) for number in range(n_requests)]


def counts(report: SimulationReport) -> dict[Fate, int]:
    """Ends that there were."""
    return {fate: report.count(fate) for fate in Fate if report.count(fate)}


# --- what becomes of requests ---------------------------------------------------------------


def test_a_trace_that_fits_is_answered_by_the_model_without_a_wait():
    """The simulation invents no trouble."""
    report = simulate(every(1.0, 60), machine())

    assert counts(report) == {Fate.DENSE: 60}
    assert report.wait_s(99) == 0
    assert report.transitions == []
    assert report.parallelism() == [(1.0, FULL_PARALLELISM)]
    assert {second.step for second in report.seconds} == {0}
    assert report.peak_bytes < report.line_bytes == round(HIGH_RATIO * 400 * MIB)


def test_a_request_alone_takes_its_tokens_over_the_rate():
    """The plainest sum there is."""
    report = simulate([Arrival(3.0, [200, 100, 300])], machine(tokens_per_s=300))

    (request,) = report.requests
    assert (request.n_texts, request.n_tokens) == (3, 600)
    assert request.answered_s == pytest.approx(2.0)


def test_its_peak_is_floor_ids_and_vectors_and_the_run():
    """What admission reserved is what the simulation uses, and nothing on top."""
    lengths = [200, 100, 300]
    bench = machine()
    report = simulate([Arrival(0.0, lengths)], bench)

    predicted = run_bytes(NOMIC, lengths, n_threads=2)
    assert (
        report.peak_bytes == 70 * MIB + bench.demand(TextSizes.of(lengths)).held_bytes + predicted
    )


def test_a_flood_fills_the_queue_and_the_rest_is_refused():
    """Work for 30 s is let in, and what drains meanwhile; nobody waits much longer than that."""
    report = simulate(every(0.01, 6, [128] * 8), machine(queue_s=30, tokens_per_s=300))

    assert set(counts(report)) == {Fate.DENSE, Fate.QUEUE_FULL}
    let_in = sum(request.n_tokens for request in report.requests if request.fate is Fate.DENSE)
    assert 300 * 25 <= let_in <= 300 * (30 + 6)
    assert report.answered_s(99) <= 36


def test_a_text_that_no_idle_server_could_take_is_too_large_and_its_neighbours_are_not():
    """A long text takes memory that a short one does not."""
    report = simulate([*every(1.0, 5), Arrival(2.5, [8192])], machine(limit_mib=250))

    assert counts(report) == {Fate.DENSE: 5, Fate.TOO_LARGE: 1}


def test_a_text_over_the_models_limit_is_cut_as_the_server_cuts_it():
    """Truncation is the default of a request."""
    small = SimulatedMachine(400 * MIB, SHAPES[BUILTIN.name], 256)

    (request,) = simulate([Arrival(0.0, [100_000])], small).requests
    assert request.n_tokens == 256


@pytest.mark.parametrize(("queue_timeout_s", "fate"), [(5.0, Fate.SPARSE), (60.0, Fate.DENSE)])
def test_a_request_without_room_waits_and_then_gets_the_fallback(
    queue_timeout_s: float, fate: Fate
):
    """The first holds two thirds of the room for 33 s; the second needs as much."""
    many = [5] * 2000
    report = simulate(
        [Arrival(0.0, many), Arrival(1.0, many)],
        machine(limit_mib=200, queue_s=1000, queue_timeout_s=queue_timeout_s),
    )

    first, second = report.requests
    assert first.fate is Fate.DENSE
    assert second.fate is fate
    if fate is Fate.SPARSE:
        assert second.reason == "memory_pressure"
        assert second.answered_s == queue_timeout_s
        assert {look.step for look in report.seconds[2:5]} == {3}


def test_a_list_of_hundreds_does_not_starve_a_single_text():
    """It keeps a window of texts in the queue; the single one stands behind that alone."""
    report = simulate([Arrival(0.0, [100] * 1000), Arrival(1.0, [100])], machine(queue_s=1000))

    many, single = (request.answered_s for request in report.requests)
    assert many == pytest.approx((1000 + 1) * 100 / 300, rel=0.01)
    assert single < many / 4


def test_a_query_waits_for_a_layer_of_a_list_and_not_for_its_run():
    """As on the server: a run of the list takes two seconds here, one of its twelve layers 0.2."""
    events = [Arrival(0.0, [100] * 200), Arrival(3.05, [10])]
    report = simulate(events, machine(2000, tokens_per_s=800))

    many, single = (request.answered_s for request in report.requests)
    assert single < 0.2 + 10 / 800
    assert many == pytest.approx((200 * 100 + 10) / 800, rel=0.01)


def test_what_is_under_way_when_the_simulation_ends_is_said_to_be_unfinished():
    """An engine of a token a second would take hours."""
    report = simulate([Arrival(0.0, [2000] * 3)], machine(tokens_per_s=1))

    assert counts(report) == {Fate.UNFINISHED: 1}
    assert len(report.seconds) <= MOST_TAIL_S + 1


# --- memory, breaker, parallelism -----------------------------------------------------------


def test_a_memory_spike_opens_the_breaker_and_it_closes_again():
    """No answer is the model's while it is open, and afterwards all are again."""
    spike = [ExtraMemory(20, 300 * MIB), ExtraMemory(30, 0)]
    report = simulate([*every(0.5, 90), *spike], machine())

    assert [change.later for change in report.transitions] == [OPEN, HALF_OPEN, CLOSED]
    opened_s, probed_s, closed_s = (change.at_s for change in report.transitions)
    assert 22 <= opened_s < probed_s < closed_s < 60
    for request in report.requests:
        if opened_s < request.at_s < probed_s:
            found_room = request.fate is Fate.SPARSE
            assert request.reason == ("breaker_open" if found_room else "memory_pressure")
            assert request.fate in (Fate.SPARSE, Fate.NO_ROOM)
        elif request.at_s < 19 or request.at_s > closed_s + 1:
            assert request.fate is Fate.DENSE
    assert {second.step for second in report.seconds if opened_s < second.at_s < closed_s} == {4}
    assert report.peak_bytes > report.line_bytes


def test_a_refused_allocation_fails_no_request():
    """The run is halved and tried again, as the server does it."""
    trace = [Arrival(0.0, [300]), Arrival(0.0, [300])]
    quiet = simulate(trace, machine(tokens_per_s=300))
    report = simulate([*trace, MemoryFailure(0.5)], machine(tokens_per_s=300))

    assert counts(report) == {Fate.DENSE: 2}
    assert report.transitions == []
    assert report.answered_s(99) > quiet.answered_s(99)


def test_weights_that_stay_again_end_no_simulation_in_the_midst_of_a_run():
    """What the run under way was reading is then looked at, though the next one reads nothing."""
    trace = [Rereading(0, 1.0), Arrival(0.1, (500,) * 4), Rereading(0.999, 0)]

    assert counts(simulate(trace, machine())) == {Fate.DENSE: 1}


def test_three_texts_that_find_no_memory_however_small_the_run_open_the_breaker():
    """Each has been tried four times, in the pauses that the server makes."""
    trace = [Arrival(at_s, [300]) for at_s in (0.0, 0.0, 0.0, 6.0)]
    report = simulate([*trace, MemoryFailure(0.1, for_s=5.0)], machine(tokens_per_s=300))

    assert [change.later for change in report.transitions] == [OPEN]
    assert report.reasons(Fate.SPARSE) == {"out_of_memory": 3, "breaker_open": 1}


def test_many_that_wait_may_end_at_once():
    """Each end makes room, which wakes the others: one within the other they were too many."""
    waiting = [Arrival(1.0 + place / 1000, [200] * 10) for place in range(400)]
    spike = [ExtraMemory(0.5, 240 * MIB), ExtraMemory(5.5, 0)]
    report = simulate([*waiting, *spike], machine(queue_timeout_s=5.0, tokens_per_s=5000))

    assert sum(counts(report).values()) == 400


def test_memory_above_the_line_lowers_the_parallelism_until_it_has_fallen():
    """The ladder's first step, and the way back."""
    report = simulate([*every(0.5, 90), ExtraMemory(10, 215 * MIB), ExtraMemory(20, 0)], machine())

    limits = {second.at_s: second.parallelism for second in report.seconds}
    assert {limits[at_s] for at_s in range(1, 10)} == {FULL_PARALLELISM}
    assert max(limits[at_s] for at_s in range(11, 20)) <= HIGH_PARALLELISM
    assert report.seconds[-1].parallelism == FULL_PARALLELISM


# --- whatever the trace ---------------------------------------------------------------------

ARRIVALS = st.builds(
    Arrival,
    at_s=st.floats(0, 60),
    tokens=st.lists(st.integers(1, 9000), min_size=1, max_size=20)
    | st.builds(lambda n, length: [length] * n, st.integers(1, 3000), st.integers(1, 40)),
)
TROUBLE = st.one_of(
    st.builds(ExtraMemory, st.floats(0, 60), st.integers(0, 600 * MIB)),
    st.builds(MemoryFailure, st.floats(0, 60)),
    st.builds(Processors, st.floats(0, 60), st.floats(0.1, 64), st.floats(0, 1)),
    st.builds(Rereading, st.floats(0, 60), st.floats(0, 2)),
)
MACHINES = st.builds(
    machine,
    st.integers(80, 700),
    tokens_per_s=st.floats(50, 5000),
    n_threads=st.integers(1, 16),
    queue_timeout_s=st.floats(0, 20),
    queue_s=st.floats(1, 300),
)


def assert_counts_add_up(report: SimulationReport, trace: Sequence[TraceEvent]) -> None:
    arrivals = sorted(
        (event.at_s, len(event.tokens)) for event in trace if isinstance(event, Arrival)
    )
    assert sorted((request.at_s, request.n_texts) for request in report.requests) == arrivals
    assert sum(counts(report).values()) == len(arrivals)
    for request in report.requests:
        assert 0 <= (request.wait_s or 0) <= request.answered_s
        assert (request.reason is None) == (
            request.fate in (Fate.DENSE, Fate.QUEUE_FULL, Fate.UNFINISHED)
        ) or request.fate is Fate.TOO_LARGE


@given(trace=st.lists(ARRIVALS, max_size=40), bench=MACHINES)
def test_nothing_passes_the_line_and_every_request_ends_once(
    trace: list[TraceEvent], bench: SimulatedMachine
):
    """The promise itself: only the fallback may pass the line, up to its own."""
    report = simulate(trace, bench)

    assert_counts_add_up(report, trace)
    line_bytes = report.line_bytes
    if report.count(Fate.SPARSE):
        line_bytes = max(line_bytes, round(FALLBACK_RATIO * bench.limit_bytes))
    assert report.peak_bytes <= line_bytes
    assert max(second.used_bytes for second in report.seconds) == report.peak_bytes


@given(
    trace=st.lists(ARRIVALS, max_size=25),
    trouble=st.lists(TROUBLE, max_size=10),
    bench=MACHINES,
)
def test_trouble_changes_how_requests_end_but_not_that_they_do(
    trace: list[Arrival], trouble: list[TraceEvent], bench: SimulatedMachine
):
    """Memory that comes and goes must leave nobody waiting for ever, nor answered twice; and the
    same trace gives the same report."""
    events = [*trace, *trouble]
    report = simulate(events, bench)

    assert_counts_add_up(report, events)
    assert report == simulate(events, bench)
    dense_tokens = sum(r.n_tokens for r in report.requests if r.fate is Fate.DENSE)
    assert dense_tokens <= bench.tokens_per_s * report.seconds[-1].at_s * (1 + 1e-9)


# --- the machine ----------------------------------------------------------------------------


def test_the_simulated_server_has_the_real_ones_defaults():
    """A simulation of other rules than the server's would be worse than none."""
    for name in ("queue_s", "queue_timeout_s", "recovery_timeout_s"):
        assert getattr(machine(), name) == Settings.model_fields[name].default


def test_weights_stay_where_they_leave_half_of_the_limit():
    """Nomic's take 520 MiB in float32."""
    nothing_else = Plan(FULL_PARALLELISM, 2, 0, (), ())
    weights_bytes = machine().weights_bytes
    for limit_mib, stay in ((1000, False), (1100, True)):
        governor = Governor(lambda: 0.0, budget_bytes=limit_mib * MIB, cores=2)
        assert governor.plan == nothing_else
        assert governor.limits().drops_pages(weights_bytes) is not stay
