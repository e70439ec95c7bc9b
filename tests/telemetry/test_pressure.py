"""Metrics of memory pressure: which series there are, and what they say."""

import re

from plimsoll.policy.breaker import BreakerState
from plimsoll.serving.fallback import DEGRADING
from plimsoll.telemetry.metrics import Telemetry
from plimsoll.telemetry.pressure import BREAKER_STATES, DEGRADED_REASONS, Recovery
from tests.fakes import FakeOpener, FakeServer, metric


def test_breaker_states_that_are_there_from_the_start_are_those_that_occur():
    """A rate does not see the first event of a series that begins with it."""
    assert set(BREAKER_STATES) == {state.value for state in BreakerState}


def test_reasons_of_degraded_replies_that_are_there_from_the_start_are_those_that_occur():
    """A rate does not see the first event of a series that begins with it."""
    assert set(DEGRADED_REASONS) == {kind.code for kind in DEGRADING}


def test_those_of_searches_are_there_once_a_server_has_collections():
    """Likewise: waiting would not help there, so the first one is to be seen."""
    server = FakeServer(FakeOpener())
    page = server.telemetry.render().decode()
    server.close()

    shown = re.findall(r'^plimsoll_degraded_total{reason="(\w+)"} 0\.0$', page, re.MULTILINE)
    assert set(shown) == {
        *DEGRADED_REASONS,
        "space_mismatch",
        "model_unavailable",
        "internal_error",
        "too_large_for_budget",
    }


def test_the_breaker_is_in_one_state_at_a_time():
    """A dashboard shows the state whose series is 1; two of them would contradict each other."""
    telemetry = Telemetry("0")

    def each(name: str) -> list[float]:
        page = telemetry.render().decode()
        return [metric(page, f'plimsoll_{name}{{state="{state}"}}') for state in BREAKER_STATES]

    assert each("breaker_state") == [1, 0, 0]
    telemetry.pressure.breaker_changed("open")
    assert each("breaker_state") == [0, 1, 0]
    telemetry.pressure.breaker_changed("half_open")
    assert each("breaker_state") == [0, 0, 1]
    assert each("breaker_transitions_total") == [0, 1, 1]


def test_each_recovery_is_counted_by_itself():
    """Levels cost differently: halved runs are cheap, a fallback gives other vectors."""
    telemetry = Telemetry("0")
    for n_times, recovery in enumerate(Recovery):
        for _ in range(n_times):
            telemetry.pressure.recovered(recovery)

    page = telemetry.render().decode()
    for n_times, recovery in enumerate(Recovery):
        level, outcome = recovery.value
        series = f'plimsoll_recoveries_total{{level="{level}",outcome="{outcome}"}}'
        assert metric(page, series) == n_times
