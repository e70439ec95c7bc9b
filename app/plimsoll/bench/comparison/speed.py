"""Tokens a second, beside the naive path and the processor's own limit."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import Worker, running
from plimsoll.bench.comparison.report import Floor
from plimsoll.bench.comparison.run import Run
from plimsoll.bench.comparison.worker import Kind, WorkerSpec

NAIVE_FLOOR = 8.0
SGEMM_FLOOR = 0.75
COSINE_GAP = 1e-4
# One text alone, and how often it is repeated in a round: the first calls after another process
# has had the cores take twice as long, so that a few would measure those.
SINGLE_TEXTS = {16: 64, 128: 16, 512: 4}
MIXED = "mixed list"
CHECKED_TEXTS = 12
KINDS: tuple[Kind, Kind] = ("engine", "naive")
NAIVE = "naive path"
Rates: TypeAlias = dict[Kind, dict[str, list[float]]]
"""Tokens a second of every round, by kind and list."""


def measure(run: Run, case: ModelCase) -> None:
    """Rounds in which both run every list, in turn, and SGEMM beside the mixed list."""
    ceilings: list[float] = []
    with running(WorkerSpec("sgemm")) as sgemm:

        @contextmanager
        def beside(kind: Kind, name: str) -> Iterator[None]:
            is_watched = kind == "engine" and name == MIXED
            before = _ceiling(sgemm) if is_watched else 0.0
            yield
            if is_watched:
                ceilings.append(max(before, _ceiling(sgemm)))

        floor = Floor("value", at_most=COSINE_GAP)
        rates = in_turn(run, case, KINDS, NAIVE, floor, beside)
    _report(run, case, rates, ceilings)


def in_turn(
    run: Run,
    case: ModelCase,
    kinds: tuple[Kind, Kind],
    peer: str,
    gap_floor: Floor | None,
    beside: Callable[[Kind, str], AbstractContextManager[None]],
) -> Rates:
    """Rounds in which both encode every list, in turn; and how far apart their vectors are.

    peer: what the second is called. gap_floor: of 1 − cosine. beside: entered around each list.
    """
    mixed = run.mixed(case)
    lists = {
        f"one text of {length} tokens": ([length], repeats)
        for length, repeats in SINGLE_TEXTS.items()
        if length <= case.token_limit
    }
    lists[MIXED] = (mixed, 1)
    rates: Rates = {kind: {name: [] for name in lists} for kind in kinds}
    with ExitStack() as opened:
        workers = {kind: opened.enter_context(running(case.spec(kind))) for kind in kinds}
        gap = _worst_gap(run, workers, mixed[:CHECKED_TEXTS])
        for round_ in range(run.sizes.rounds):
            # Each begins a round in its turn, so that none has the coolest processor.
            order = kinds if round_ % 2 == 0 else kinds[::-1]
            for name, (lengths, repeats) in lists.items():
                for kind in order:
                    run.say(f"speed: round {round_ + 1} of {run.sizes.rounds}, {name}, {kind}")
                    if len(lengths) == 1:  # pools and buffers woken up, as in a stream of texts
                        workers[kind].seconds(lengths)
                    with beside(kind, name):
                        taken = workers[kind].seconds(lengths, repeats)
                    rates[kind][name].append(sum(lengths) / taken)
    name = f"{kinds[0]}, 1 − cosine with {peer}, worst of {CHECKED_TEXTS}"
    run.add(case, "vectors", name, "", [gap], floor=gap_floor)
    return rates


def _report(run: Run, case: ModelCase, rates: Rates, ceilings: list[float]) -> None:
    for name, ours in rates["engine"].items():
        held = case.full_size and name == MIXED
        run.add(
            case,
            "speed",
            name,
            "tokens/s",
            ours,
            peer=NAIVE,
            peer_values=rates["naive"][name],
            floor=Floor("ratio", at_least=NAIVE_FLOOR) if held else None,
        )
    gflop_a_token = 2e-9 * case.linear_parameters
    run.add(
        case,
        "speed",
        f"{MIXED}, linear layers",
        "GFLOP/s",
        [rate * gflop_a_token for rate in rates["engine"][MIXED]],
        peer="SGEMM, all cores",
        peer_values=ceilings,
        floor=Floor("ratio", at_least=SGEMM_FLOOR) if case.full_size else None,
    )


def _worst_gap(run: Run, workers: Mapping[Kind, Worker], lengths: Sequence[int]) -> float:
    """1 − cosine of the vectors of both, at the worst; warms both up as well."""
    vectors = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, worker in workers.items():
            run.say(f"speed: vectors of {kind}")
            path = Path(folder) / f"{kind}.npy"
            worker.ask(lengths=list(lengths), vectors=str(path))
            vectors.append(np.load(path).astype(np.float64))
    gaps = 1 - np.multiply(*vectors).sum(axis=1)
    return max(0.0, float(gaps.max()))


def _ceiling(sgemm: Worker) -> float:
    """GFLOP/s of the faster library."""
    gflops: dict[str, float] = sgemm.ask(sgemm=True)["gflops"]
    return max(gflops.values())
