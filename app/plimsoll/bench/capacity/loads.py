"""How many servers a load takes, by the server's own rules on the measured costs.

Each server gets its share of the requests as a Poisson process, which `plimsoll simulate`'s engine
answers: admission, queue and runs are the real ones, their speed is what was measured. A balancer
that looks for the server with the fewest connections does better than that, so this errs on the
safe side; machines that share their cores with others do worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from plimsoll.bench.capacity.figures import Figures
from plimsoll.encoder.architecture import Architecture
from plimsoll.policy.costs import TextSizes
from plimsoll.policy.lines import admission_ratio
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.report import Fate
from plimsoll.simulation.server import simulate
from plimsoll.simulation.trace import Arrival

N_REQUESTS = 1000
SEED = 11
STEPS = 7  # of the search for a rate, each half as wide as the one before
MOST_REFUSED_RATIO = 0.001
AMPLE_BYTES = 64 << 30  # memory is a question of its own


@dataclass(frozen=True)
class Load:
    """Requests of one kind. p99_s: within which 99 of 100 have to be answered."""

    requests_per_s: float
    n_texts: int
    tokens: int  # of each text
    p99_s: float

    @property
    def n_tokens(self) -> int:
        """Of a request."""
        return self.n_texts * self.tokens


@dataclass(frozen=True)
class Answer:
    """What a load takes.

    most_per_s: requests that one server answers in good time; 0: not even one alone is.
    alone_s: of one request alone. p99_s: at the share of each of n_servers. n_servers: None where
    no number of them is enough. budget_bytes: memory budget of each, at the least.
    """

    load: Load
    most_per_s: float
    alone_s: float
    n_servers: int | None
    p99_s: float | None
    budget_bytes: int

    @property
    def utilization_ratio(self) -> float:
        """Of each server, where there are enough."""
        if not self.n_servers or not self.most_per_s:
            return 0.0
        return self.load.requests_per_s / self.n_servers / self.most_per_s


def servers_for(figures: Figures, architecture: Architecture, load: Load) -> Answer:
    """How many servers like the one measured answer a load in good time."""
    alone_s = figures.alone_s(load.n_tokens)
    budget_bytes = _budget_bytes(figures, architecture, load)
    most_per_s = 0.0
    if alone_s <= load.p99_s:
        most_per_s = _most_per_s(figures, architecture, load)
    if not most_per_s:
        return Answer(load, 0.0, alone_s, None, None, budget_bytes)
    n_servers = max(1, ceil(load.requests_per_s / most_per_s))
    p99_s = predicted_p99_s(figures, architecture, load, load.requests_per_s / n_servers)
    return Answer(load, most_per_s, alone_s, n_servers, p99_s, budget_bytes)


def predicted_p99_s(
    figures: Figures, architecture: Architecture, load: Load, per_s: float
) -> float | None:
    """Of one server at so many requests a second; None where it refuses some."""
    report = simulate(_arrivals(load, per_s), _machine(figures, architecture, load))
    refused = N_REQUESTS - report.count(Fate.DENSE)
    within_s = report.answered_s(99)
    if refused > MOST_REFUSED_RATIO * N_REQUESTS or within_s is None:
        return None
    # One alone takes more than its share of a busy server, where requests overlap.
    return within_s + figures.alone_s(load.n_tokens) - figures.cost_s(load.n_tokens)


def _most_per_s(figures: Figures, architecture: Architecture, load: Load) -> float:
    least, most = 0.0, 1 / figures.cost_s(load.n_tokens)
    for _ in range(STEPS):
        middle = (least + most) / 2
        p99_s = predicted_p99_s(figures, architecture, load, middle)
        if p99_s is not None and p99_s <= load.p99_s:
            least = middle
        else:
            most = middle
    return least


def _arrivals(load: Load, per_s: float) -> Sequence[Arrival]:
    random, at_s, found = Random(SEED), 0.0, []
    for _ in range(N_REQUESTS):
        at_s += random.expovariate(per_s)
        found.append(Arrival(at_s, (load.tokens,) * load.n_texts))
    return found


def _machine(figures: Figures, architecture: Architecture, load: Load) -> SimulatedMachine:
    return SimulatedMachine(
        limit_bytes=AMPLE_BYTES,
        architecture=architecture,
        token_limit=max(load.tokens, architecture.context_tokens),
        floor_bytes=int(figures.rest_bytes),
        # What a request costs besides its tokens is theirs here.
        tokens_per_s=load.n_tokens / figures.cost_s(load.n_tokens),
        n_threads=int(figures.n_threads),
    )


def _budget_bytes(figures: Figures, architecture: Architecture, load: Load) -> int:
    """The least budget in which such a request is let in, some of them at a time."""
    demand = _machine(figures, architecture, load).demand(
        TextSizes.of([load.tokens] * load.n_texts)
    )
    # As many as are under way together where each is answered within the time that it has.
    n_together = ceil(load.p99_s / figures.cost_s(load.n_tokens)) + 1
    needed_bytes = figures.rest_bytes + n_together * demand.held_bytes + demand.run_bytes
    budget_bytes = float(needed_bytes)
    while admission_ratio(figures.rest_bytes / budget_bytes) * budget_bytes < needed_bytes:
        budget_bytes *= 1.02
    return round(budget_bytes)
