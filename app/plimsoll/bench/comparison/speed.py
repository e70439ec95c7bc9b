"""Tokens a second, beside the naive path, PyTorch and the processor's own limit."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import Worker, WorkerDiedError, running
from plimsoll.bench.comparison.report import Floor
from plimsoll.bench.comparison.run import Run
from plimsoll.bench.comparison.worker import WorkerSpec

NAIVE_FLOOR = 8.0
SGEMM_FLOOR = 0.75
COSINE_GAP = 1e-4
# One text alone, and how often it is repeated in a round.
SINGLE_TEXTS = {16: 12, 128: 4, 512: 1}
MIXED = "mixed list"
CHECKED_TEXTS = 12

PEERS = {"naive": "naive path", "pytorch": "PyTorch"}


def measure(run: Run, case: ModelCase) -> None:
    """Rounds in which every peer runs every list, in turn."""
    lists = {
        _alone(length): ([length], repeats)
        for length, repeats in SINGLE_TEXTS.items()
        if length <= case.token_limit
    }
    mixed = run.mixed(case)
    lists[MIXED] = (mixed, 1)
    rates: dict[str, dict[str, list[float]]] = {}
    ceilings: list[float] = []
    with ExitStack() as opened:
        sgemm = opened.enter_context(running(WorkerSpec("sgemm")))
        workers = _open_peers(run, case, opened)
        _compare_vectors(run, case, workers, mixed[:CHECKED_TEXTS])
        for round_ in range(run.sizes.rounds):
            # Each peer begins a round in its turn, so that none has the coolest processor.
            order = list(workers)[round_ % len(workers) :] + list(workers)[: round_ % len(workers)]
            for name, (lengths, repeats) in lists.items():
                for kind in order:
                    run.say(f"speed: round {round_ + 1} of {run.sizes.rounds}, {name}, {kind}")
                    if len(lengths) == 1:  # pools and buffers woken up, as in a stream of texts
                        workers[kind].seconds(lengths)
                    beside = kind == "engine" and name == MIXED
                    before = _ceiling(sgemm) if beside else 0.0
                    taken = workers[kind].seconds(lengths, repeats)
                    rates.setdefault(kind, {}).setdefault(name, []).append(sum(lengths) / taken)
                    if beside:
                        ceilings.append(max(before, _ceiling(sgemm)))
    _report(run, case, rates, ceilings)


def _report(
    run: Run, case: ModelCase, rates: dict[str, dict[str, list[float]]], ceilings: list[float]
) -> None:
    for name, ours in rates["engine"].items():
        for kind, title in PEERS.items():
            if kind not in rates:
                continue
            held = case.full_size and kind == "naive" and name == MIXED
            run.add(
                case,
                "speed",
                name,
                "tokens/s",
                ours,
                peer=title,
                peer_values=rates[kind][name],
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


def _open_peers(run: Run, case: ModelCase, opened: ExitStack) -> dict[str, Worker]:
    workers = {}
    for kind in ("engine", "naive"):
        run.say(f"speed: opening {kind}")
        spec = case.spec("engine" if kind == "engine" else "naive")
        workers[kind] = opened.enter_context(running(spec))
    run.say("speed: opening pytorch")
    try:
        spec = case.spec("pytorch")
        workers["pytorch"] = opened.enter_context(running(spec, python=run.torch_python))
    except WorkerDiedError as error:
        run.note(f"PyTorch was not measured: {error}")
    return workers


def _compare_vectors(
    run: Run, case: ModelCase, workers: dict[str, Worker], lengths: Sequence[int]
) -> None:
    """Hold every peer's vectors against the engine's; warms the peers up as well."""
    vectors = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, worker in workers.items():
            run.say(f"speed: vectors of {kind}")
            path = Path(folder) / f"{kind}.npy"
            worker.ask(lengths=list(lengths), vectors=str(path))
            vectors[kind] = np.load(path).astype(np.float64)
    for kind, title in PEERS.items():
        if kind in vectors:
            gaps = 1 - (vectors["engine"] * vectors[kind]).sum(axis=1)
            name = f"1 − cosine with {title}, worst of {len(gaps)}"
            floor = Floor("value", at_most=COSINE_GAP)
            run.add(case, "vectors", name, "", [max(0.0, float(gaps.max()))], floor=floor)


def _ceiling(sgemm: Worker) -> float:
    """GFLOP/s of the faster library."""
    gflops: dict[str, float] = sgemm.ask(sgemm=True)["gflops"]
    return max(gflops.values())


def _alone(length: int) -> str:
    return f"one text of {length} tokens"
