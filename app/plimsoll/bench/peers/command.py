"""Run the peers in turn, print the table, and write JSON and a chart."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

import numpy as np

from plimsoll.bench.comparison.command import machine_facts
from plimsoll.bench.comparison.models import ModelCase, make_ready
from plimsoll.bench.comparison.processes import MeasurementError
from plimsoll.bench.peers.catalog import ONE_CORE, PADDED, PEERS, PLIMSOLL
from plimsoll.bench.peers.chart import chart
from plimsoll.bench.peers.measure import all_vectors, figure_names, measure, worst_cosine
from plimsoll.bench.peers.peer import PeerKind, PeerUnavailableError
from plimsoll.bench.peers.results import Measured, ModelResults
from plimsoll.bench.peers.table import as_dict, table
from plimsoll.bench.peers.workloads import Workload, workloads_of


@dataclass(frozen=True)
class PeerPlan:
    """What is measured, with what, for how long."""

    models: Sequence[str]
    peers: Sequence[str] = ()  # parts of names; none: every peer
    rounds: int = 3
    seconds: float = 5.0
    list_texts: int = 2000
    n_threads: int = 2
    load_file: Path | None = None
    prepare: bool = False


@dataclass(frozen=True)
class PeerOutputs:
    """Files beside standard output, and whether the table there is the short one."""

    json: Path | None = None
    svg: Path | None = None
    brief: bool = False


def run_and_report(plan: PeerPlan, outputs: PeerOutputs) -> None:
    """Measure and report; after Ctrl-C what there is, and KeyboardInterrupt goes on.

    Raises PlimsollError where a model cannot be had, ValueError where a word names no peer.
    """
    progress = _Progress()
    kinds = chosen(plan.peers)
    failures = _prepare(kinds, progress) if plan.prepare else {}
    machine = machine_facts()
    results: list[ModelResults] = []
    try:
        for name in plan.models:
            case = make_ready(name, progress.say, None)
            workloads, compared = workloads_of(case, plan.load_file, plan.list_texts)
            measured = [Measured(kind, problem=failures.get(kind.name, "")) for kind in kinds]
            results.append(ModelResults(case.title, figure_names(workloads), measured))
            _run_model(plan, case, measured, workloads, compared, progress)
    finally:
        if results:
            _write(outputs, plan, machine, results)


def _write(
    outputs: PeerOutputs,
    plan: PeerPlan,
    machine: dict[str, str],
    results: Sequence[ModelResults],
) -> None:
    machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    if outputs.json:
        found = as_dict(machine, asdict(plan), results)
        outputs.json.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    if outputs.svg:
        outputs.svg.write_text(chart(results), encoding="utf-8")
    sys.stdout.write(table(machine, results, brief=outputs.brief))


def chosen(parts: Sequence[str]) -> list[PeerKind]:
    """Plimsoll, and the peers whose titles hold one of these words; all without any.

    Raises ValueError where a word names none.
    """
    for part in parts:
        if not any(part.lower() in kind.title.lower() for kind in PEERS):
            titles = ", ".join(dict.fromkeys(kind.name for kind in PEERS))
            raise ValueError(f"no peer is called {part!r}; there are {titles}")
    wanted = [part.lower() for part in (*parts, ONE_CORE)]
    return [
        kind
        for kind in PEERS
        if not parts or kind.name == PLIMSOLL or any(part in kind.title.lower() for part in wanted)
    ]


class _Progress:
    """Lines on standard error, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = monotonic()

    def say(self, text: str) -> None:
        print(f"[{monotonic() - self._started:5.0f} s] {text}", file=sys.stderr, flush=True)


def _prepare(kinds: Sequence[PeerKind], progress: _Progress) -> dict[str, str]:
    """Get what peers need into the cache; the name of each that could not be, and why."""
    failures: dict[str, str] = {}
    for steps in dict.fromkeys((kind.prepare, kind.name) for kind in kinds if kind.prepare):
        prepare, name = steps
        progress.say(f"preparing {name}")
        try:
            assert prepare is not None
            prepare()
        except (PeerUnavailableError, subprocess.CalledProcessError, OSError) as error:
            failures[name] = str(error)
    return failures


def _run_model(
    plan: PeerPlan,
    case: ModelCase,
    measured: list[Measured],
    workloads: Sequence[Workload],
    compared: Sequence[Sequence[str]],
    progress: _Progress,
) -> None:
    reference = _reference(case, plan.n_threads, compared)
    for number in range(plan.rounds):
        start = number % len(measured)  # another goes first each time
        for one in measured[start:] + measured[:start]:
            if not one.problem:
                progress.say(f"{case.title}: round {number + 1}, {one.kind.title}")
                _measure_once(plan, case, workloads, one, number, compared, reference)
                if one.problem:
                    progress.say(one.problem)


def _reference(case: ModelCase, n_threads: int, compared: Sequence[Sequence[str]]) -> np.ndarray:
    """Float32 vectors of an ordinary ONNX Runtime session, which every peer is held against."""
    (padded,) = (kind for kind in PEERS if kind.name == PADDED)
    peer = padded.start(case, n_threads)
    try:
        return all_vectors(peer, compared)
    finally:
        peer.stop()


def _measure_once(
    plan: PeerPlan,
    case: ModelCase,
    workloads: Sequence[Workload],
    one: Measured,
    number: int,
    compared: Sequence[Sequence[str]],
    reference: np.ndarray,
) -> None:
    """Add a round to `one`, or the reason why it has none."""
    try:
        found = measure(
            one.kind,
            case,
            workloads,
            n_threads=plan.n_threads,
            seconds=plan.seconds,
            compared=() if number else compared,
        )
    except (PeerUnavailableError, MeasurementError) as error:
        one.problem = str(error)
        return
    one.rounds[number] = found.figures
    if found.vectors is not None:
        one.worst_cosine = worst_cosine(found.vectors, reference)
