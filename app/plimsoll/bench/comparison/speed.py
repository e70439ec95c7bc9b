"""Tokens a second, beside the naive path and the processor's own limit."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

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
KINDS: tuple[Kind, ...] = ("engine", "naive")
NAIVE = "naive path"


def measure(run: Run, case: ModelCase) -> None:
    """Rounds in which both run every list, in turn."""
    lists = {
        _alone(length): ([length], repeats)
        for length, repeats in SINGLE_TEXTS.items()
        if length <= case.token_limit
    }
    mixed = run.mixed(case)
    lists[MIXED] = (mixed, 1)
    rates: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in lists} for kind in KINDS
    }
    ceilings: list[float] = []
    with ExitStack() as opened:
        sgemm = opened.enter_context(running(WorkerSpec("sgemm")))
        workers = {kind: opened.enter_context(running(case.spec(kind))) for kind in KINDS}
        _compare_vectors(run, case, workers, mixed[:CHECKED_TEXTS])
        for round_ in range(run.sizes.rounds):
            # Each begins a round in its turn, so that none has the coolest processor.
            order = KINDS if round_ % 2 == 0 else KINDS[::-1]
            for name, (lengths, repeats) in lists.items():
                for kind in order:
                    run.say(f"speed: round {round_ + 1} of {run.sizes.rounds}, {name}, {kind}")
                    if len(lengths) == 1:  # pools and buffers woken up, as in a stream of texts
                        workers[kind].seconds(lengths)
                    beside = kind == "engine" and name == MIXED
                    before = _ceiling(sgemm) if beside else 0.0
                    taken = workers[kind].seconds(lengths, repeats)
                    rates[kind][name].append(sum(lengths) / taken)
                    if beside:
                        ceilings.append(max(before, _ceiling(sgemm)))
    _report(run, case, rates, ceilings)


def _report(
    run: Run, case: ModelCase, rates: dict[str, dict[str, list[float]]], ceilings: list[float]
) -> None:
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


def _compare_vectors(
    run: Run, case: ModelCase, workers: Mapping[Kind, Worker], lengths: Sequence[int]
) -> None:
    """Hold the naive path's vectors against the engine's; warms both up as well."""
    vectors = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, worker in workers.items():
            run.say(f"speed: vectors of {kind}")
            path = Path(folder) / f"{kind}.npy"
            worker.ask(lengths=list(lengths), vectors=str(path))
            vectors[kind] = np.load(path).astype(np.float64)
    gaps = 1 - (vectors["engine"] * vectors["naive"]).sum(axis=1)
    name = f"1 − cosine with {NAIVE}, worst of {len(gaps)}"
    floor = Floor("value", at_most=COSINE_GAP)
    run.add(case, "vectors", name, "", [max(0.0, float(gaps.max()))], floor=floor)


def _ceiling(sgemm: Worker) -> float:
    """GFLOP/s of the faster library."""
    gflops: dict[str, float] = sgemm.ask(sgemm=True)["gflops"]
    return max(gflops.values())


def _alone(length: int) -> str:
    return f"one text of {length} tokens"
