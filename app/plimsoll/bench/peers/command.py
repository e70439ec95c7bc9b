"""Run the peers in turn, print the table, and write JSON and a chart."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.bench.comparison.command import machine_facts
from plimsoll.bench.comparison.models import ModelCase, make_ready
from plimsoll.bench.comparison.processes import MeasurementError, ended_by_signals, on_processors
from plimsoll.bench.comparison.progress import Say, progress
from plimsoll.bench.peers.catalog import ONE_CORE, PADDED, PEERS, PLIMSOLL
from plimsoll.bench.peers.chart import chart
from plimsoll.bench.peers.measure import all_vectors, figure_names, measure
from plimsoll.bench.peers.peer import PeerKind, PeerUnavailableError
from plimsoll.bench.peers.results import Measured, ModelResults
from plimsoll.bench.peers.table import as_dict, table
from plimsoll.bench.peers.workloads import MIXED_TEXTS, Workload, workloads_of
from plimsoll.machine.cpu import available_cores


class PeerPlanError(Exception):
    """What is asked for cannot be measured."""


@dataclass(frozen=True)
class PeerPlan:
    """What is measured, with what, for how long, and where it is written. Raises PeerPlanError."""

    models: Sequence[str]
    peers: Sequence[str] = ()  # parts of titles; none: every peer
    rounds: int = 3
    seconds: float = 5.0
    list_texts: int = 2000
    n_threads: int = 2
    texts: Sequence[str] = ()  # drawn from for the mixed lists; none: made up
    prepare: bool = False
    brief: bool = False
    json: Path | None = None
    svg: Path | None = None

    def __post_init__(self) -> None:
        for part in self.peers:
            if not any(part.lower() in kind.title.lower() for kind in PEERS):
                titles = ", ".join(dict.fromkeys(kind.name for kind in PEERS))
                raise PeerPlanError(f"no peer is called {part!r}; there are {titles}")
        if 0 < len(self.texts) < MIXED_TEXTS:
            raise PeerPlanError(f"{len(self.texts)} texts are too few: it takes {MIXED_TEXTS}")

    @property
    def kinds(self) -> list[PeerKind]:
        """Plimsoll, on all cores and on one, and the peers that are asked for."""
        wanted = [part.lower() for part in self.peers]
        return [
            kind
            for kind in PEERS
            if not wanted
            or kind.name in (PLIMSOLL, ONE_CORE)
            or any(part in kind.title.lower() for part in wanted)
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without texts, which are long."""
        options = ("models", "peers", "rounds", "seconds", "list_texts", "n_threads")
        return {name: getattr(self, name) for name in options} | {"n_texts": len(self.texts)}


def run_and_report(plan: PeerPlan) -> None:
    """Measure and report; after Ctrl-C or SIGTERM what there is.

    Raises PlimsollError where a model cannot be had, NoSyntheticModelError for "synthetic".
    """
    say = progress()
    results: list[ModelResults] = []
    with ended_by_signals():
        failures = _prepare(plan.kinds, say) if plan.prepare else {}
        with on_processors(plan.n_threads) as held:
            machine = machine_facts() | {"processors": " ".join(map(str, held))}
            try:
                for name in plan.models:
                    case = make_ready(name, say, None)
                    measured = [
                        Measured(kind, problem=failures.get(kind.prepare, ""))
                        for kind in plan.kinds
                    ]
                    workloads, compared = workloads_of(case, plan.texts, plan.list_texts)
                    names = figure_names(workloads)
                    results.append(ModelResults(case.title, names, measured, available_cores()))
                    _run_model(plan, case, measured, workloads, compared, say)
            finally:
                if results:
                    _write(plan, machine, results)


def _write(plan: PeerPlan, machine: dict[str, str], results: Sequence[ModelResults]) -> None:
    machine["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    if plan.json:
        found = as_dict(machine, plan.as_dict(), results)
        plan.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if plan.svg:
        plan.svg.write_text(chart(results), encoding="utf-8")
    sys.stdout.write(table(machine, results, brief=plan.brief))


def _prepare(kinds: Sequence[PeerKind], say: Say) -> dict[Callable[[], None] | None, str]:
    """Get what peers need into the cache; each preparation that failed, and why."""
    failures: dict[Callable[[], None] | None, str] = {}
    names = {kind.prepare: kind.name for kind in kinds if kind.prepare}
    for prepare, name in names.items():
        say(f"preparing {name}")
        try:
            prepare()
        except (PeerUnavailableError, subprocess.CalledProcessError, OSError) as error:
            failures[prepare] = str(error)
    return failures


def _run_model(
    plan: PeerPlan,
    case: ModelCase,
    measured: list[Measured],
    workloads: Sequence[Workload],
    compared: Sequence[Sequence[str]],
    say: Say,
) -> None:
    """Add rounds to each of `measured`, or the reason why it has none."""
    reference = _reference(case, plan.n_threads, compared)
    for number in range(plan.rounds):
        start = number % len(measured)  # another goes first each time
        for one in measured[start:] + measured[:start]:
            if one.problem:
                continue
            say(f"{case.title}: round {number + 1}, {one.kind.title}")
            try:
                one.rounds[number] = measure(
                    one.kind,
                    case,
                    workloads,
                    n_threads=plan.n_threads,
                    seconds=plan.seconds,
                    compared=() if number else compared,
                    reference=reference,
                )
            except (PeerUnavailableError, MeasurementError) as error:
                one.problem = str(error)
                say(one.problem)


def _reference(case: ModelCase, n_threads: int, compared: Sequence[Sequence[str]]) -> np.ndarray:
    """Float32 vectors of an ordinary ONNX Runtime session, which every peer is held against."""
    (padded,) = (kind for kind in PEERS if kind.name == PADDED)
    with closing(padded.ready(case, n_threads)()) as peer:
        return all_vectors(peer, compared)
