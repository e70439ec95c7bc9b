"""What follows from the figures of one server, beside what is known of queues and by hand."""

from dataclasses import replace
from functools import cache
from math import exp, expm1, isclose, log

import pytest

from plimsoll.bench.capacity.bottlenecks import bottlenecks, first_limit
from plimsoll.bench.capacity.corpora import corpus_answer
from plimsoll.bench.capacity.loads import Answer, Load, predicted_p99_s, servers_for
from plimsoll.encoder.catalog import SHAPES
from tests.bench.capacity.figures import FIGURES

NOMIC = SHAPES["nomic-embed-text-v1.5"]
LOAD = Load(requests_per_s=1000, n_texts=1, tokens=30, p99_s=0.1)  # each costs 5 ms


@cache
def answer_to(load: Load) -> Answer:
    """Simulated once for all tests."""
    return servers_for(FIGURES, NOMIC, load)


def services_within(utilization: float) -> float:
    """Of M/D/1, in services: what 99 of 100 take from their arrival on.

    The tail of the wait falls as C·exp(-x·t), x the root of u·(exp(x) - 1) = x, C as
    (1 - u) / (u·exp(x) - 1): Tijms, A First Course in Stochastic Models, 9.6.
    """
    low, high = 1e-3, 20.0
    for _ in range(60):
        x = (low + high) / 2
        low, high = (low, x) if utilization * expm1(x) > x else (x, high)
    share = (1 - utilization) / (utilization * exp(low) - 1)
    return 1 + log(share / 0.01) / low


@pytest.mark.parametrize("utilization", [0.5, 0.8])
def test_waiting_is_that_of_a_queue_with_one_server(utilization: float):
    """Runs join texts that wait, so the figures are near each other and not the same."""
    within_s = predicted_p99_s(FIGURES, NOMIC, LOAD, utilization / 0.005)
    assert within_s is not None
    services = (within_s - FIGURES.alone_s(30) + FIGURES.cost_s(30)) / 0.005
    expected = services_within(utilization)
    assert 0.6 * expected < services < 1.5 * expected


def test_a_server_that_is_asked_for_more_than_it_can_do_refuses():
    """The queue has room for half a minute: by then 12,000 requests wait too many."""
    impatient = replace(LOAD, n_texts=64, tokens=100)
    assert predicted_p99_s(FIGURES, NOMIC, impatient, 10 / FIGURES.cost_s(6400)) is None


def test_servers_are_as_many_as_answer_in_time():
    answer = answer_to(LOAD)
    assert answer.n_servers is not None
    assert answer.p99_s is not None
    assert 0.5 / 0.005 < answer.most_per_s < 1 / 0.005
    assert answer.n_servers - 1 < 1000 / answer.most_per_s <= answer.n_servers
    assert answer.p99_s <= LOAD.p99_s
    doubled = answer_to(replace(LOAD, requests_per_s=2000))
    assert doubled.n_servers is not None
    assert abs(doubled.n_servers - 2 * answer.n_servers) <= 1
    hurried = answer_to(replace(LOAD, p99_s=0.02))
    assert hurried.n_servers is not None
    assert hurried.n_servers > answer.n_servers


def test_no_number_of_servers_is_faster_than_one_request_alone():
    answer = answer_to(replace(LOAD, p99_s=0.009))
    assert (answer.n_servers, answer.most_per_s) == (None, 0.0)
    assert first_limit(FIGURES, answer) == "the answer's time"


def test_short_texts_meet_the_cost_of_requests_first_and_long_ones_the_engine():
    short = answer_to(replace(LOAD, tokens=10))
    long = answer_to(replace(LOAD, tokens=200))
    assert first_limit(FIGURES, short) == "requests"
    assert first_limit(FIGURES, long) == "the engine"


def test_a_budget_grows_with_what_a_request_holds():
    one = answer_to(LOAD)
    many = answer_to(replace(LOAD, n_texts=500, p99_s=30))
    assert FIGURES.rest_bytes < one.budget_bytes < many.budget_bytes


def test_a_corpus_takes_what_its_lists_cost():
    """By hand: a million documents of 100 tokens are 20,000 lists of 5,000 tokens, 0.502 s each."""
    answer = corpus_answer(FIGURES, 10**6, tokens=100, days=0.1, core_hour_price=0.05)
    assert isclose(answer.seconds, 20_000 * 0.502)
    assert answer.n_servers == 2  # 8,640 s are a tenth of a day
    assert isclose(answer.core_hours, 2 * 10_040 / 3600)
    assert answer.cost is not None
    assert isclose(answer.cost, answer.core_hours * 0.05)
    assert answer.vector_bytes == 10**6 * 768 * 4


def test_limits_are_those_of_the_figures():
    limits = {one.what: one.limit for one in bottlenecks(FIGURES, None, document_tokens=100)}
    assert limits["requests: routing, JSON, admission"].startswith("500 a second")
    assert limits["the engine"] == "10,000 tokens a second"
    documents = 86_400 * 50 / 0.502
    assert limits["one server's collections and migrations"].startswith(f"{documents:,.0f} ")
