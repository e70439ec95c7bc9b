"""From starting a process to its first vector: engine and peer."""

from time import perf_counter

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import running
from plimsoll.bench.comparison.report import Floor
from plimsoll.bench.comparison.run import Run
from plimsoll.bench.comparison.worker import Kind

FLOOR_S = 1.5
N_TOKENS = 16


def measure(run: Run, case: ModelCase) -> None:
    """The engine beside the naive path."""
    compare(run, case, ("engine", "naive"), peer="naive path", at_most_s=FLOOR_S)


def compare(
    run: Run, case: ModelCase, kinds: tuple[Kind, Kind], *, peer: str, at_most_s: float
) -> None:
    """Fresh processes in turn; the first of each kind only warms the file cache."""
    ours, theirs = kinds
    seconds: dict[Kind, list[float]] = {ours: [], theirs: []}
    for round_ in range(run.sizes.rounds + 1):
        run.say(f"start-up: round {round_} of {run.sizes.rounds}")
        for kind, taken in seconds.items():
            first_vector_s = _first_vector(case, kind)
            if round_:
                taken.append(first_vector_s)
    run.add(
        case,
        "start",
        f"first vector of the {ours}",
        "s",
        seconds[ours],
        peer=peer,
        peer_values=seconds[theirs],
        lower_is_better=True,
        floor=Floor("value", at_most=at_most_s) if case.full_size else None,
    )


def _first_vector(case: ModelCase, kind: Kind) -> float:
    """Seconds from starting a process to the vector of a text of N_TOKENS."""
    start = perf_counter()
    with running(case.spec(kind)) as worker:
        worker.ask(lengths=[N_TOKENS], repeats=1)
        return perf_counter() - start
