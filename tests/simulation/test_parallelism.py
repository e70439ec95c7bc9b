"""The scheduler beside every fixed parallelism, on the same trace and the same made-up machine.

A fixed one keeps its sequences and its threads whatever happens. The engine is a rate: it gains
nothing from more threads than there are cores, loses nothing to threads that take turns, and waits
for the disk where weights are read again. Throughput is tokens over the time to the last vector.
"""

import math
from collections.abc import Callable, Sequence

import pytest

from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.known_models import NOMIC_V1_5
from plimsoll.policy import governor
from plimsoll.policy.lines import FULL_PARALLELISM
from plimsoll.policy.scheduler import Plan
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.report import Fate
from plimsoll.simulation.server import simulate
from plimsoll.simulation.trace import Arrival, Processors, Rereading, TraceEvent

CORES = 8
# Room for the weights, so that only what a trace says decides.
MACHINE = SimulatedMachine(
    4 << 30, SHAPES[NOMIC_V1_5.name], 8192, tokens_per_s=4000, n_threads=CORES, queue_s=3600
)
LIST = (60,) * 100
STEADY: Sequence[TraceEvent] = [Arrival(2.0 * number, LIST) for number in range(20)]
BURSTS: Sequence[TraceEvent] = [Arrival(10.0 * burst, LIST) for burst in range(3) for _ in range(5)]
FLOOD: Sequence[TraceEvent] = [Arrival(0.1 * number, LIST) for number in range(25)]
TRACES: dict[str, Sequence[TraceEvent]] = {
    "steady": STEADY,
    "bursts": BURSTS,
    "a quota that shrinks": [*FLOOD, Processors(2, 1.5)],
    "a quota that grows": [Processors(0, 1), *FLOOD, Processors(4, CORES)],
    "a neighbour on a core": [*FLOOD, Processors(1, CORES, 1 / CORES)],
    "neighbours on nearly all": [*FLOOD, Processors(1, CORES, 0.85)],
    "weights that are read again": [*FLOOD, Rereading(1, 0.4)],
    "and neighbours": [*FLOOD, Rereading(1, 0.4), Processors(2, CORES, 0.85)],
}


class Fixed:
    """Holds to one plan."""

    def __init__(self, parallelism: int) -> None:
        self.plan = Plan(parallelism, min(parallelism, CORES), 0, (), ())

    def next(self, *_: object, **__: object) -> Plan:
        return self.plan


def throughput(trace: Sequence[TraceEvent]) -> float:
    """Tokens a second, of a trace whose requests all get vectors."""
    requests = simulate(trace, MACHINE).requests
    assert {request.fate for request in requests} == {Fate.DENSE}
    ended_s = max(request.at_s + request.answered_s for request in requests)
    return sum(request.n_tokens for request in requests) / ended_s


@pytest.fixture
def fix(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def use(parallelism: int) -> None:
        scheduler = Fixed(parallelism)
        monkeypatch.setattr(governor, "AdaptiveScheduler", lambda clock, cores: scheduler)

    return use


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_the_scheduler_reaches_nine_tenths_of_the_best_fixed_parallelism(
    trace: Sequence[TraceEvent], fix: Callable[[int], None]
):
    """It knows nothing of what comes; the best fixed one is known only afterwards."""
    adaptive = throughput(trace)
    fixed = []
    for exponent in range(int(math.log2(FULL_PARALLELISM)) + 1):
        fix(2**exponent)
        fixed.append(throughput(trace))

    assert adaptive >= 0.9 * max(fixed)


def test_where_weights_are_read_again_runs_grow_until_they_share_the_pass(
    fix: Callable[[int], None],
):
    """With runs whose layers are as short as queries like them, more time goes into reading."""
    trace = TRACES["weights that are read again"]
    adaptive = throughput(trace)
    fix(FULL_PARALLELISM)

    assert adaptive > 1.1 * throughput(trace)
