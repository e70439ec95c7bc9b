"""Crowds that come back when they are refused, as OpenAI's clients do: twice, when they are told.

What `Retry-After` should say was found here, before any server said it.
"""

from collections.abc import Callable, Iterable, Sequence

import pytest

from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.known_models import NOMIC_V1_5
from plimsoll.policy.return_times import HEEDED_S, MOST_TOLD_S, ReturnTimes
from plimsoll.simulation import attempts
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.report import Fate, RequestRecord, SimulationReport
from plimsoll.simulation.server import simulate
from plimsoll.simulation.trace import Arrival, Processors, TraceEvent

N_TEXTS, N_RETRIES = 50, 2
# The crowd comes when the engine has shown how fast it is.
CROWD_S, END_S = 100.0, 400.0
# What a client waits that does not heed what it is told.
OWN_PAUSE_S = 0.7


def machine(tokens_per_s: float, queue_s: float) -> SimulatedMachine:
    return SimulatedMachine(
        2 << 30, SHAPES[NOMIC_V1_5.name], 8192, tokens_per_s=tokens_per_s, queue_s=queue_s
    )


def crowd(n_callers: int, bench: SimulatedMachine) -> list[TraceEvent]:
    """Lists that come within a second: 64 of them are five times what the queue holds."""
    text_tokens = round(5 * bench.tokens_per_s * bench.queue_s / 64 / N_TEXTS)
    return [
        Arrival(CROWD_S + 0.01 * number, [text_tokens] * N_TEXTS, N_RETRIES)
        for number in range(n_callers)
    ]


def before() -> list[TraceEvent]:
    """Work by which the drain rate is measured."""
    return [Arrival(0.5 * number, [128] * 64) for number in range(8)]


def queries() -> list[TraceEvent]:
    """Two a second, of one token each."""
    return [Arrival(0.123 + number / 2, [1]) for number in range(round(2 * END_S))]


def of_crowd(report: SimulationReport) -> Sequence[RequestRecord]:
    return [request for request in report.requests if request.n_texts == N_TEXTS]


def answered(requests: Iterable[RequestRecord]) -> int:
    return sum(request.fate is Fate.DENSE for request in requests)


def heeding(most_s: int) -> Callable[[float, float], float]:
    """Clients that heed no more than so many seconds."""
    told_s = attempts.told_s

    def waited_s(seconds: float, chance: float) -> float:
        told = told_s(seconds, chance)
        return told if told <= most_s else OWN_PAUSE_S

    return waited_s


@pytest.mark.parametrize("heeded_s", [HEEDED_S, MOST_TOLD_S])
@pytest.mark.parametrize(("tokens_per_s", "queue_s"), [(8000, 5), (500, 15), (500, 30)])
def test_a_crowd_of_five_times_the_queue_is_answered_with_two_retries(
    monkeypatch: pytest.MonkeyPatch, tokens_per_s: float, queue_s: float, heeded_s: int
):
    """And no query waits for them."""
    monkeypatch.setattr(attempts, "told_s", heeding(heeded_s))
    bench = machine(tokens_per_s, queue_s)
    report = simulate([*before(), *crowd(64, bench), *queries()], bench)

    assert answered(of_crowd(report)) >= 61
    asked = [request for request in report.requests if request.n_tokens == 1]
    assert len(asked) == answered(asked) == 2 * END_S
    assert max(request.answered_s for request in asked) < 1


def test_without_places_a_crowd_comes_back_together_and_is_lost(monkeypatch: pytest.MonkeyPatch):
    """Each is told when the queue has room for one; all come then, until no retry is left."""
    monkeypatch.setattr(ReturnTimes, "expect", lambda *of, **times: None)
    bench = machine(500, 15)
    report = simulate([*before(), *crowd(64, bench)], bench)

    assert answered(of_crowd(report)) < 30


def test_no_time_is_lost_while_a_crowd_is_told_to_wait():
    """Who comes back too late leaves the engine idle; told a minute each, all would be answered."""
    bench = machine(500, 15)
    report = simulate([*before(), *crowd(64, bench)], bench)

    work_s = sum(request.n_tokens for request in of_crowd(report)) / bench.tokens_per_s
    ends_s = max(request.at_s + request.answered_s for request in of_crowd(report)) - CROWD_S
    assert ends_s == pytest.approx(work_s, rel=0.05)


def test_of_seven_queues_those_are_answered_who_heed_two_minutes(
    monkeypatch: pytest.MonkeyPatch,
):
    """96 lists are work for 220 s. Two waits of a minute end before the turn of the last third,
    whatever is told; two of two minutes do not."""
    bench = machine(500, 30)
    trace = [*before(), *crowd(96, bench)]
    assert answered(of_crowd(simulate(trace, bench))) >= 93
    monkeypatch.setattr(attempts, "told_s", heeding(HEEDED_S))
    reached = (2 * HEEDED_S + bench.queue_s) / 220
    assert answered(of_crowd(simulate(trace, bench))) == pytest.approx(96 * reached, rel=0.1)


def test_an_engine_that_becomes_slower_keeps_most_of_its_promises():
    """A quarter of the processors goes to others just as the crowd has come."""
    bench = machine(8000, 5)
    slower = Processors(CROWD_S + 1, cores=1.5)
    report = simulate([*before(), *crowd(64, bench), slower], bench)

    assert answered(of_crowd(report)) >= 61


def test_a_request_is_one_however_often_its_client_sends_it():
    """Counted at every attempt, a crowd would look three times as large as it is."""
    bench = machine(8000, 5)
    report = simulate([*before(), *crowd(64, bench)], bench)

    assert len(report.requests) == 8 + 64
    attempts_made = report.count_by_attempts()
    assert set(attempts_made) <= {1, 2, 3}
    assert sum(attempts_made.values()) == len(report.requests) - report.count(Fate.QUEUE_FULL)
    later = [request for request in of_crowd(report) if request.n_attempts > 1]
    assert later
    assert all(request.answered_s > 1 for request in later)


def test_without_retries_who_is_refused_does_not_come_back():
    """A trace says so itself."""
    bench = machine(8000, 5)
    once = [Arrival(event.at_s, event.tokens) for event in crowd(64, bench)]  # type: ignore[union-attr]
    report = simulate([*before(), *once], bench)

    assert report.count(Fate.QUEUE_FULL) > 40
    assert set(report.count_by_attempts()) == {1}
