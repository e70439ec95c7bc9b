"""Measure the engine alone, from ids to vectors, beside an ordinary session, in turn.

Whole programs, from texts to vectors, are compared by `plimsoll bench peers`.

    python -m plimsoll.bench.comparison --quick            a few minutes
    python -m plimsoll.bench.comparison --json FILE        everything, a quarter of an hour or more
    python -m plimsoll.bench.comparison --only speed --model builtin --rounds 5

How to read the table. Absolute figures belong to this machine and this moment; *better by*
does not so much: it compares with the peer on the same line, round by round, because both ran
in turn in the same run. Above 1 Plimsoll is better, whichever direction is better. Every cell is
the median of the rounds, in brackets the lowest and highest. A line with a floor says pass or
MISS by the median; other programs on the machine shrink the SGEMM rate, the peers' speed and
ours unequally, so mind the load average in the first line.

start    seconds from starting a process to the vector of a text of 16 tokens, as ids. Sidecar
         and file cache are warm. The naive path opens its model and encodes the same ids.
vectors  what the peers compute is the same: 1 − cosine with the engine.
speed    tokens a second from ids to unit vectors, padding not counted: one text alone, and a
         mixed list (a sample of the project's load file, or a draw of its lengths). The
         engine takes it in the executor's runs. The *naive path* is an exported graph with
         float32 initializers in an ONNX Runtime session with default options, fed padded batches
         of 32 in file order. *Linear layers* is the mixed list's rate in multiplications and
         additions of weights alone, beside the best rate of ONNX Runtime and NumPy at 512 to
         1024 × 768 × 3072 just before and after.
memory   of a fresh process, sampled from outside every 10 ms: peak since its start, and settled
         after 3 idle seconds; the engine gives memory back after one, as the server has it do.
         *Anonymous* is what the kernel cannot take back; *resident* holds file pages besides,
         such as the mapped weights. *Above bare interpreter* takes off the anonymous memory of a
         process that has imported numpy, onnxruntime and tokenizers.
footprint  what runs of many shapes take at their peak beside what admission predicts for them, in
         fresh shapes that the formula's constants were not fitted to.
200 MiB  a control group whose limit kills, the weights evicted from the file cache before. The
         group's usage holds file pages and so may touch the limit; oom_kill must stay 0, and
         must not for the naive path: that is the control. Needs root.
int8     the engine with PLIMSOLL_COMPUTE=int8 beside itself in float32: start, speed, 200 MiB.
         Codes are made whatever their vectors come to, so of random weights it says speed alone.

Without --model it measures a synthetic model of nomic-embed-text-v1.5's shape, and the built-in
model where it is in the cache. Weights and exports are kept in ~/.cache/plimsoll-oracles.
The synthetic model, and the load file that the mixed list is taken from, are there only for
scripts/benchmark.py of a checkout; without them the table says so.
The exit code is 0, also when a floor is missed or a stage breaks off; with --check it is then 1.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from plimsoll.bench.comparison import footprint, hard_limit, int8, memory, speed, startup
from plimsoll.bench.comparison.models import (
    SYNTHETIC,
    MakeSynthetic,
    ModelCase,
    NoSyntheticModelError,
    builtin_is_here,
    make_ready,
)
from plimsoll.bench.comparison.processes import MeasurementError, ended_by_signals
from plimsoll.bench.comparison.progress import progress
from plimsoll.bench.comparison.report import Report
from plimsoll.bench.comparison.run import FULL, QUICK, Run
from plimsoll.encoder.backends.onnx_runtime import runtime_version
from plimsoll.errors import PlimsollError
from plimsoll.machine.cpu import available_cores

# Above this load average a core, other programs take part in what is measured.
BUSY_RATIO = 0.3

STAGES: dict[str, Callable[[Run, ModelCase], None]] = {
    "start": startup.measure,
    "speed": speed.measure,
    "memory": memory.measure,
    "limit": hard_limit.measure,
    "footprint": footprint.measure,
    "int8": int8.measure,
}


def main(
    arguments: Sequence[str] | None = None,
    *,
    make_synthetic: MakeSynthetic | None = None,
    load_file: Path | None = None,
) -> int:
    """Measure, print the table, write JSON; returns the exit code.

    make_synthetic, load_file: what a checkout has and an installed package has not.
    """
    options = _parse(arguments)
    sizes = QUICK if options.quick else FULL
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    chosen = [stage for stage in STAGES if not options.only or stage in options.only]
    report = Report(
        machine_facts(), {"rounds": sizes.rounds, "quick": options.quick, "only": chosen}
    )
    run = Run(sizes, report, progress(), load_file)
    if os.getloadavg()[0] > BUSY_RATIO * available_cores():
        run.note("the machine was busy before the run: figures are too low, and ratios rough")
    with ended_by_signals():
        for name in options.model or _usual_models(run, has_synthetic=make_synthetic is not None):
            try:
                case = make_ready(name, run.say, make_synthetic)
            except (PlimsollError, NoSyntheticModelError) as error:
                sys.exit(f"benchmark: {error}")
            _run_stages(run, case, chosen)
    report.machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    sys.stdout.write(report.as_table())
    if options.json:
        options.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 1 if options.check and (report.n_missed or report.broken) else 0


def _run_stages(run: Run, case: ModelCase, stages: Sequence[str]) -> None:
    """All of them; one that breaks off does not keep the next from its turn."""
    for stage in stages:
        run.say(f"{case.title}: {stage}")
        try:
            STAGES[stage](run, case)
        except MeasurementError as error:
            run.say(f"broken off: {error}")
            run.report.broken.append(f"{case.title}: {stage}: {error}")


def _usual_models(run: Run, *, has_synthetic: bool) -> list[str]:
    """What is measured where no model is named, with a note for what cannot be."""
    models = []
    if has_synthetic:
        models.append(SYNTHETIC)
    else:
        run.note("the synthetic model was not measured: only a checkout's scripts/benchmark.py can")
    if builtin_is_here():
        models.append("builtin")
    else:
        run.note("the built-in model was not measured: it is not in the cache (plimsoll pull)")
    return models


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m plimsoll.bench.comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=_positive, help="rounds of every measurement")
    parser.add_argument(
        "--model",
        action="append",
        help=f"{SYNTHETIC}, a model's name, or the path of a GGUF file; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="shorter lists, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument(
        "--only", action="append", choices=STAGES, help="measure only this; may be repeated"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a floor is missed")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def machine_facts() -> dict[str, str]:
    """What a reader must know of the machine to read the figures."""
    return {
        "cores": str(available_cores()),
        "processor": platform.machine(),
        "Python": platform.python_version(),
        "ONNX Runtime": runtime_version(),  # of onnxruntime or onnxruntime-gpu
        "NumPy": version("numpy"),
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
    }
