"""What a run takes beside what the engine's formula says it takes.

The formula (app/plimsoll/encoder/layout.py) decides what is admitted, so it must not promise too
little (the kernel would kill) nor far too much (requests would be refused for nothing). Its
constants were fitted to other shapes than those measured here.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from time import sleep

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import MemoryWatch, Worker, process_memory
from plimsoll.bench.comparison.report import Floor
from plimsoll.bench.comparison.run import Run

MIB = 1 << 20
N_SHAPES = 16
SEED = 20
# The formula may promise 10 % less or 30 % more than what is measured.
LEAST_RATIO, MOST_RATIO = 0.90, 1.30
# A run of the largest size that the executor makes by default.
MOST_TOKENS = 4096
RELEASED_S = 0.3  # after which what was given back is off the process's account
REPEATS = 2


def shapes(token_limit: int, seed: int) -> list[list[int]]:
    """Runs of all sorts: a lone text of any length, equal ones, and mixtures."""
    random = Random(seed)
    drawn = []
    for kind in range(N_SHAPES):
        if kind % 4 == 0:
            drawn.append([random.randint(16, token_limit)])
        elif kind % 4 == 1:
            length = random.randint(8, min(512, token_limit))
            drawn.append([length] * max(1, min(32, random.randint(2, MOST_TOKENS) // length)))
        else:
            lengths: list[int] = []
            longest = random.choice((64, 256, min(1024, token_limit)))
            while len(lengths) < 32 and sum(lengths) < random.randint(256, MOST_TOKENS):
                lengths.append(random.randint(4, longest))
            drawn.append(lengths)
    return drawn


def measure(run: Run, case: ModelCase) -> None:
    """One process a number of threads; every shape once warmed up and settled."""
    for n_threads in (1, 2):
        spec = replace(
            case.spec("engine"), n_threads=n_threads, run_texts=1 << 20, run_tokens=1 << 40
        )
        worker = Worker(spec)
        predicted, measured = [], []
        try:
            worker.wait_ready()
            worker.ask(lengths=[16], repeats=1)
            for number, lengths in enumerate(shapes(case.token_limit, SEED)):
                run.say(f"footprint: {n_threads} threads, shape {number + 1} of {N_SHAPES}")
                promised = worker.ask(predict=lengths)["bytes"]
                predicted.append(promised / MIB)
                worker.ask(lengths=lengths, repeats=1)  # what the first run of a kind sets up
                measured.append(max(_taken(worker, lengths) for _ in range(REPEATS)) / MIB)
        finally:
            worker.close()
        _report(run, case, f"{n_threads} threads", predicted, measured)


def _taken(worker: Worker, lengths: Sequence[int]) -> int:
    """Peak of anonymous memory above where it was before."""
    worker.ask(release=True)
    sleep(RELEASED_S)
    before = process_memory(worker.pid)
    watch = MemoryWatch(worker.pid, every_s=0.002)
    try:
        worker.ask(lengths=list(lengths), repeats=1)
    finally:
        peak = watch.stop()
    assert before is not None
    return peak.anonymous_bytes - before.anonymous_bytes


def _report(
    run: Run, case: ModelCase, name: str, predicted: Sequence[float], measured: Sequence[float]
) -> None:
    ratios = [said / taken for said, taken in zip(predicted, measured, strict=True)]
    run.add(case, "footprint", f"{name}: predicted", "MiB", predicted)
    run.add(case, "footprint", f"{name}: measured", "MiB", measured)
    for title, ratio, floor in (
        ("lowest", min(ratios), Floor("value", at_least=LEAST_RATIO)),
        ("highest", max(ratios), Floor("value", at_most=MOST_RATIO)),
    ):
        run.add(
            case, "footprint", f"{name}: predicted over measured, {title}", "", [ratio], floor=floor
        )
